"""The demo's new network, compatible with its old one by BT². After `make demo`.

It learns from the network that was trained alone, too.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.feature_save = "work_dirs/demo/feature_save"
config.output = "work_dirs/demo/demo_w16_BT2"
config.scenario = "OPclass"
config.old_config = "demo_w16_softmax_class30"
config.new_config = "demo_w16_arc_class70"
config.network = "demo_w16"
config.embedding_size = 64
config.extra_dim = 16
config.batch_size = 32
config.num_epoch = 18
config.seed = 668  # neither the old network's nor that of the new one trained alone
config.val_targets = ["demo"]
