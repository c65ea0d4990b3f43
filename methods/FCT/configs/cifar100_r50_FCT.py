"""FCT on CIFAR-100: from half of the classes to all, 128-d, without side information."""

from easydict import EasyDict as edict

config = edict()
config.scenario = "EXclass"
config.old_config = "cifar100_fct_old_class50"
config.new_config = "cifar100_fct_new_class100"
config.embedding_size = 128
