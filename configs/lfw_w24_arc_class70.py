"""A new model trained alone on real faces (LFW), incompatible. See runs/lfw_opclass.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/lfw/data"
config.shard = "class70"
config.network = "demo_w24"
config.embedding_size = 128
config.margin_list = (1.0, 0.3, 0.0)
config.scale = 16.0
config.num_epoch = 20
