"""The demo's old model: small, softmax, 30 % of the drawn identities. See runs/demo.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/demo/data"
config.shard = "class30"
config.network = "demo_w16"
config.embedding_size = 64
config.head = "softmax"
config.batch_size = 64
config.num_epoch = 12
config.val_targets = ["demo"]
