"""BT-2's old model: 50 of CIFAR-100's classes, narrow ResNet-50, 128-d.

The published 50 are tools/split_dataset.py's cifar100_first50_lex.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/cifar-100-python/train"
config.shard = "class50"
config.network = "resnet50_narrow"
config.embedding_size = 128
config.head = "softmax"
config.head_bias = False
config.head_unit = True
config.label_smoothing = 0.1
config.image_size = 224  # from 32, only mirrored
config.pixels = "imagenet"
config.batch_size = 128
config.num_epoch = 100
config.warmup_epoch = 5
config.optimizer = "adam"
config.lr = 1e-3
config.lr_policy = "cosine"
config.weight_decay = 2.0**-15
config.clip_norm = 1e9  # not clipped
