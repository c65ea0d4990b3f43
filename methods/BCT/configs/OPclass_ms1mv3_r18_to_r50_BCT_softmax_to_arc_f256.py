"""BCT on MS1MV3, open-class: r18 softmax old model, r50 ArcFace new one, 256-d."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.scenario = "OPclass"
config.old_config = "f256_r18_softmax_class30"
config.embedding_size = 256
config.num_epoch = 35
