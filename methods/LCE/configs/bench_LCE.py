"""LCE in AdvBCT's reading, with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.convention = "bct"
