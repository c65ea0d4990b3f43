"""FCT on ImageNet: from half of the classes to all, 128-d, without side information."""

from easydict import EasyDict as edict

config = edict()
config.scenario = "EXclass"
config.old_config = "imagenet_fct_old_class50"
config.new_config = "imagenet_fct_new_class100"
config.embedding_size = 128
