"""The new network of runs/benchmark.sh trained alone; settings and shard are given there."""

from easydict import EasyDict as edict

config = edict()
config.convention = "bct"
