"""Drawn people: stored old embeddings carried into the new space.

See runs/people_views.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.scenario = "EXclass"
config.old_config = "people_views_old_class50"
config.new_config = "people_views_new_class100"
config.embedding_size = 64
config.batch_size = 64
config.num_epoch = 100
config.lr = 2e-3
config.seed = 1666
config.hidden_size = 256
config.target = "unit"
