"""insightface's wf4m_r50: r50, CosFace on WebFace4M."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace4M"
config.num_classes = 205990
config.num_image = 4235242
config.margin_list = (1.0, 0.0, 0.4)
config.fp16 = True
config.num_epoch = 20
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
