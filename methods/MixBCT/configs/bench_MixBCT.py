"""MixBCT with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.mix_ratio = 0.5
