"""NCCL with the settings of runs/benchmark.sh."""

from easydict import EasyDict as edict

config = edict()
config.queue_size = 2048
config.temperature = 0.0625  # 1 / scale
