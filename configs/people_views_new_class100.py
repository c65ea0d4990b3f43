"""Drawn people: the new network on all of them, trained alone.

See runs/people_views.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/people_views/bounding_box_train.txt"
config.image_size = (128, 64)
config.pixels = "imagenet"
config.augment = "person"
config.images_per_class = 4
config.triplet_weight = 1.0
config.batch_size = 32
config.num_workers = 1
config.lr = 0.1
config.lr_policy = "cosine"
config.warmup_epoch = 2
config.network = "gem_w32"
config.embedding_size = 64
config.head = "softmax"
config.head_bias = False
config.label_smoothing = 0.1
config.num_epoch = 60
config.seed = 1666
config.shard = "class100"
