"""Model alone of the MixBCT benchmark: r50, ArcFace, 128-d, on all of MS1MV3."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.embedding_size = 128
config.num_epoch = 35
