"""OpenBCT with the settings of runs/benchmark.sh: the old classifier and contrastive pairs."""

from easydict import EasyDict as edict

config = edict()
config.terms = {"cls": 1.0, "influence": 1.0, "contrastive": 1.0}
config.logits = "cosine"
config.influence_scale = 16.0
config.contrastive_temperature = 0.1
