"""Tiny-ImageNet, half of the classes -> all: 16 extra coordinates.

See runs/tiny_imagenet.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.scenario = "EXclass"
config.old_config = "tiny_imagenet_old_class50"
config.rec = "work_dirs/tiny_imagenet/train.txt"
config.image_size = 32
config.pixels = "imagenet"
config.augment = "resized_crop"
config.batch_size = 64
config.num_workers = 1
config.lr = 0.1
config.lr_policy = "cosine"
config.warmup_epoch = 1
config.network = "conv4_w64"
config.embedding_size = 64
config.margin_list = (1.0, 0.0, 0.0)  # a cosine classifier without margin
config.scale = 16.0
config.num_epoch = 12
config.seed = 1666
config.new_config = "tiny_imagenet_new_class100"
config.extra_dim = 16
config.head = "margin"
