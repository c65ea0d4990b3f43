"""MixBCT on real faces, LFW, open-class. See runs/lfw_opclass.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/lfw/data"
config.scenario = "OPclass"
config.old_config = "lfw_w16_softmax_class30"
config.network = "demo_w24"
config.embedding_size = 128
config.margin_list = (1.0, 0.3, 0.0)
config.scale = 32.0
config.num_epoch = 20
config.mix_ratio = 0.3
config.T = 0.9
