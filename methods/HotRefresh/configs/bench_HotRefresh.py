"""Hot refresh with the settings of runs/benchmark.sh: RACT, at a temperature for small batches."""

from easydict import EasyDict as edict

config = edict()
config.temperature = 0.1
