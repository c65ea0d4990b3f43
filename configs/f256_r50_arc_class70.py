"""Model alone of the MixBCT benchmark: r50, ArcFace, 256-d, on the other 70 % of identities."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.shard = "class70"
config.embedding_size = 256
config.num_epoch = 35
