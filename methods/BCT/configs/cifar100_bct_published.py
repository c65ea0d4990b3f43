"""BCT as BT-2 compares with it: bare cosines at weight 10, a rate that never falls.

BT-2's prototypes are shorter than 1, and it smooths the influence's labels, too.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/cifar-100-python/train"
config.scenario = "EXclass"
config.old_config = "cifar100_bt2_old_class50"
config.parity = "published"
config.influence_weight = 10.0
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
config.optimizer = "adam"
config.lr = 1e-3
config.lr_power = 0.0  # constant
config.weight_decay = 2.0**-15
config.clip_norm = 1e9  # not clipped
config.seed = 668  # neither the old network's nor that of the new one trained alone
