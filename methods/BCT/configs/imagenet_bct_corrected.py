"""BCT on ImageNet as BT-2 trains BT²: cosines with a scale, a rate that falls."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/imagenet/train"
config.scenario = "EXclass"
config.old_config = "imagenet_bt2_old_class50"
config.influence_scale = 16.0
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
config.seed = 668  # neither the old network's nor that of the new one trained alone
