"""AdvBCT on MS1MV3, extended-class: r18 softmax old model, r50 ArcFace new one, 128-d."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.scenario = "EXclass"
config.old_config = "f128_r18_softmax_class30"
config.embedding_size = 128
config.num_epoch = 35
