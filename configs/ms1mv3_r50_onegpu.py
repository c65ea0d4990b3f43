"""insightface's ms1mv3_r50_onegpu: r50, ArcFace on MS1MV3."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.num_classes = 93431
config.num_image = 5179510
config.lr = 0.02
config.fp16 = True
config.num_epoch = 20
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
