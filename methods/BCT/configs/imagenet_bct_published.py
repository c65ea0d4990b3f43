"""BCT as BT-2 compares with it on ImageNet: bare cosines at weight 10, a rate that never falls, no
smoothed labels.

BT-2's prototypes are shorter than 1.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/imagenet/train"
config.scenario = "EXclass"
config.old_config = "imagenet_bt2_old_class50"
config.parity = "published"
config.influence_weight = 10.0
config.network = "resnet50_narrow"
config.embedding_size = 128
config.head = "softmax"
config.head_bias = False
config.head_unit = True
config.image_size = 224
config.pixels = "imagenet"
config.augment = "resized_crop"
config.batch_size = 256
config.num_epoch = 100
config.optimizer = "adam"
config.lr = 1e-3
config.lr_power = 0.0  # constant
config.weight_decay = 0.0
config.clip_norm = 1e9  # not clipped
config.seed = 668  # neither the old network's nor that of the new one trained alone
