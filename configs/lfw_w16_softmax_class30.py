"""Old model on real faces (LFW): small, softmax, 30 % of the people. See runs/lfw_opclass.sh."""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/lfw/data"
config.shard = "class30"
config.network = "demo_w16"
config.embedding_size = 128
config.head = "softmax"
config.num_epoch = 20
