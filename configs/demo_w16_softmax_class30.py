"""The demo's old model: 30 % of the drawn people, and little training. See runs/demo.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.feature_save = "work_dirs/demo/feature_save"
config.output = "work_dirs/demo/demo_w16_softmax_class30"
config.shard = "class30"
config.network = "demo_w16"
config.embedding_size = 64
config.head = "softmax"
config.batch_size = 64
config.num_epoch = 3
config.val_targets = ["demo"]
