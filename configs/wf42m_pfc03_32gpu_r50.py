"""insightface's wf42m_pfc03_32gpu_r50: r50, CosFace on WebFace42M, 30% of the negative classes."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.3
config.lr = 0.4
config.fp16 = True
config.num_epoch = 20
config.warmup_epoch = 2
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
