"""UniBCT with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.influence_scale = 16.0
config.refresh_epochs = [0, 5]  # at 0 the graph is almost blind: plain class means, as in BCT
