"""MixBCT on MS1MV3, extended-class: r18 ArcFace old model, r50 ArcFace new one, 512-d."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/ms1m-retinaface-t1"
config.scenario = "EXclass"
config.old_config = "f512_r18_arc_class30"
config.num_epoch = 35
