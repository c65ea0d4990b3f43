"""BT² with the settings of runs/benchmark.sh, and 32 extra coordinates."""

from easydict import EasyDict as edict

config = edict()
config.extra_dim = 32
config.head = "margin"  # as the others have it
