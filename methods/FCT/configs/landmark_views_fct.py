"""Landmark views: stored old embeddings carried into the new space.

See runs/landmark_views.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.scenario = "EXclass"
config.old_config = "landmark_views_old_class50"
config.new_config = "landmark_views_new_class100"
config.embedding_size = 64
config.batch_size = 64
config.num_epoch = 100
config.lr = 2e-3
config.seed = 1666
config.hidden_size = 256
config.target = "unit"
