"""Old model of the MixBCT benchmark: r18, ArcFace, 512-d, on 30 % of MS1MV3's identities."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.shard = "class30"
config.network = "r18"
config.num_epoch = 35
