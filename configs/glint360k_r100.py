"""insightface's glint360k_r100: r100, CosFace on Glint360K."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/glint360k"
config.num_classes = 360232
config.num_image = 17091657
config.network = "r100"
config.margin_list = (1.0, 0.0, 0.4)
config.weight_decay = 0.0001
config.fp16 = True
config.num_epoch = 20
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
