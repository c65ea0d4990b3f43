"""Paragon of runs/benchmark.sh: the new network trained alone, with the settings given there."""

from easydict import EasyDict as edict

config = edict()
