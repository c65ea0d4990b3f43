"""UniBCT with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.influence_scale = 16.0
config.refresh_epochs = [5, 9]  # of 16, as 10 and 20 of 35
