"""insightface's wf42m_pfc02_r100_16gpus:
r100, CosFace on WebFace42M, 20% of the negative classes.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.network = "r100"
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.2
config.lr = 0.2
config.fp16 = True
config.num_epoch = 20
config.warmup_epoch = 2
config.verbose = 10000
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
