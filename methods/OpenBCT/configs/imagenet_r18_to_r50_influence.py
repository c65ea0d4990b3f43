"""BCT on ImageNet as in openBCT: the old model's own classifier judges the leading 512 of 2048."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/imagenet/train"
config.scenario = "EXclass"
config.old_config = "imagenet_r18_class50"
config.network = "resnet50"
config.embedding_size = 2048
config.dimensions = "leading"
config.fill = "off"
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
