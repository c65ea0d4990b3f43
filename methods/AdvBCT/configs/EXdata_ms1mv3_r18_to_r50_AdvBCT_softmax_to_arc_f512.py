"""AdvBCT on MS1MV3, extended-data: r18 softmax old model, r50 ArcFace new one, 512-d."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.scenario = "EXdata"
config.old_config = "f512_r18_softmax_data30"
config.num_epoch = 35
