"""UniBCT with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.influence_scale = 16.0
config.refresh_epochs = [1, 3]  # early: there are 16 epochs
