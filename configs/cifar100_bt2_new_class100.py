"""BT-2's new model trained alone: all of CIFAR-100, narrow ResNet-50, 128-d."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/cifar-100-python/train"
config.shard = "class100"
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
config.seed = 667  # not the old network's, or both would start from the same weights
