"""The demo's new network, compatible with its old one by LCE. After `make demo`."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.feature_save = "work_dirs/demo/feature_save"
config.output = "work_dirs/demo/demo_w16_LCE"
config.scenario = "OPclass"
config.old_config = "demo_w16_softmax_class30"
config.network = "demo_w16"
config.embedding_size = 64
config.margin_list = (1.0, 0.3, 0.0)
config.scale = 10.0  # softer than usual: there are only 84 people
config.batch_size = 32
config.num_epoch = 18
config.seed = 667  # not the old network's, or both would start from the same weights
config.val_targets = ["demo"]
