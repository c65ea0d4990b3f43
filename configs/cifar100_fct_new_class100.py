"""FCT's new model, trained alone: ResNet-50 of 128 dimensions on all classes of CIFAR-100."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/cifar-100-python/train"
config.shard = "class100"
config.network = "resnet50_narrow"
config.embedding_size = 128
config.image_size = 224
config.pixels = "imagenet"
config.head = "softmax"
config.head_bias = False
config.label_smoothing = 0.1
config.batch_size = 128  # on each of 8 GPUs
config.num_epoch = 100
config.warmup_epoch = 5
config.lr = 1.024
config.lr_policy = "cosine"
config.momentum = 0.875
config.weight_decay = 2.0**-15
config.clip_norm = 1e9  # not clipped
config.seed = 667  # not the old network's, or both would start from the same weights
