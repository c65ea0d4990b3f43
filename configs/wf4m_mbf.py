"""insightface's wf4m_mbf: MobileFaceNet, CosFace on WebFace4M."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace4M"
config.num_classes = 205990
config.num_image = 4235242
config.network = "mbf"
config.margin_list = (1.0, 0.0, 0.4)
config.weight_decay = 0.0001
config.fp16 = True
config.num_epoch = 20
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
