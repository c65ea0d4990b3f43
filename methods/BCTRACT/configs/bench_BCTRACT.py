"""BCT-RACT with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.influence_scale = 16.0
