"""insightface's ms1mv2_mbf: MobileFaceNet, ArcFace on MS1MV2."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/faces_emore"
config.num_classes = 85742
config.num_image = 5822653
config.network = "mbf"
config.weight_decay = 0.0001
config.fp16 = True
config.num_epoch = 40
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
