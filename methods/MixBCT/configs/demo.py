"""The demo's new network, compatible with its old one by MixBCT. See runs/demo.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.scenario = "OPclass"
config.old_config = "demo_w16_softmax_class30"
config.network = "demo_w24"
config.embedding_size = 64
config.margin_list = (1.0, 0.3, 0.0)
config.scale = 32.0
config.batch_size = 64
config.num_epoch = 6
config.val_targets = ["demo"]
