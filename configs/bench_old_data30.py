"""Old model of runs/benchmark.sh: softmax, on 30 % of each identity's images."""

from easydict import EasyDict as edict

config = edict()
config.shard = "data30"
config.head = "softmax"
