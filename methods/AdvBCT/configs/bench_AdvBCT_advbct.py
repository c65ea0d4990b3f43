"""AdvBCT in its own code's reading, with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.reading = "advbct"
