"""BT-2's new model trained alone: all of ImageNet, narrow ResNet-50, 128-d."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/imagenet/train"
config.shard = "class100"
config.network = "resnet50_narrow"
config.embedding_size = 128
config.head = "softmax"
config.head_bias = False
config.head_unit = True
config.label_smoothing = 0.1
config.image_size = 224
config.pixels = "imagenet"
config.augment = "resized_crop"
config.batch_size = 256
config.num_epoch = 100
config.warmup_epoch = 20
config.optimizer = "adam"
config.lr = 1e-3
config.lr_policy = "cosine"
config.weight_decay = 0.0
config.clip_norm = 1e9  # not clipped
config.seed = 667  # not the old network's, or both would start from the same weights
