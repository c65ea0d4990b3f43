"""Landmark views: the new network on all landmarks, trained alone.

See runs/landmark_views.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/landmark_views/label_20.txt"
config.image_size = 112
config.pixels = "imagenet"
config.augment = "mirror"
config.batch_size = 32
config.num_workers = 1
config.lr = 0.1
config.lr_policy = "cosine"
config.warmup_epoch = 2
config.network = "gem_w32"
config.embedding_size = 64
config.margin_list = (1.0, 0.0, 0.0)  # a cosine classifier without margin
config.scale = 16.0
config.num_epoch = 30
config.seed = 1666
config.shard = "class100"
