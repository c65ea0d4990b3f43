"""Tiny-ImageNet: an old model of half of the classes, with a plain classifier.

See runs/tiny_imagenet.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/tiny_imagenet/train.txt"
config.image_size = 32
config.pixels = "imagenet"
config.augment = "resized_crop"
config.batch_size = 64
config.num_workers = 1
config.lr = 0.1
config.lr_policy = "cosine"
config.warmup_epoch = 1
config.shard = "class50"
config.network = "conv4_w32"
config.embedding_size = 64
config.head = "softmax"
config.num_epoch = 12
