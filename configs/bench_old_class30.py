"""Old model of runs/benchmark.sh: softmax, on 30 % of the identities."""

from easydict import EasyDict as edict

config = edict()
config.shard = "class30"
config.head = "softmax"
