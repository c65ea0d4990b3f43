"""UniBCT in the reading of AdvBCT's code, with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.reading = "advbct"
config.influence_scale = 16.0  # that of the classification, as is the margin
