"""LCE in the reading of its own paper's code, with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.reading = "lce"
