"""insightface's own MS1MV3 recipe, to train r50 with ArcFace as everybody knows it."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.network = "r50"
config.embedding_size = 512
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.lr_power = 1.0
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
