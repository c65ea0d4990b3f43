"""Old model of the MixBCT benchmark: r18, softmax, 128-d, on 30 % of each identity's images."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.shard = "data30"
config.network = "r18"
config.embedding_size = 128
config.head = "softmax"
config.num_epoch = 35
