"""The demo's new network trained alone, without any thought of the old one. See runs/demo.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.output = "work_dirs/demo/demo_w16_arc_class70"
config.shard = "class70"
config.network = "demo_w16"
config.embedding_size = 64
config.margin_list = (1.0, 0.3, 0.0)
config.scale = 10.0
config.batch_size = 32
config.num_epoch = 18
config.seed = 667  # not the old network's, or both would start from the same weights
config.val_targets = ["demo"]
