"""The demo's new network trained alone, without any thought of the old one. See runs/demo.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.shard = "class70"
config.network = "demo_w24"
config.embedding_size = 64
config.margin_list = (1.0, 0.3, 0.0)
config.scale = 32.0
config.batch_size = 64
config.num_epoch = 6
config.val_targets = ["demo"]
