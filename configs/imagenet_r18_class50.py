"""OpenBCT's old model on ImageNet: ResNet-18, softmax, on the first half of the classes."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/imagenet/train"
config.shard = "class50"
config.network = "resnet18"
config.head = "softmax"
config.image_size = 224
config.augment = "resized_crop"
config.pixels = "imagenet"
config.num_workers = 8
config.batch_size = 32  # of 8 processes: 256
config.num_epoch = 90
config.decay_epoch = [30, 60]
config.weight_decay = 1e-4
config.clip_norm = 1e9  # none
