"""Omniglot: stored old embeddings carried into the new space.

See runs/omniglot.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.scenario = "EXclass"
config.old_config = "omniglot_old_class50"
config.new_config = "omniglot_new_class100"
config.embedding_size = 64
config.batch_size = 256
config.num_epoch = 40
config.lr = 2e-3
config.seed = 1666
config.hidden_size = 512
config.target = "unit"
config.uncertainty = True
