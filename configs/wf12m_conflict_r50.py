"""insightface's wf12m_conflict_r50: r50, CosFace on WebFace12M with conflicting labels."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace12M_Conflict"
config.num_classes = 1017970
config.num_image = 12720066
config.margin_list = (1.0, 0.0, 0.4)
config.fp16 = True
config.num_epoch = 20
config.warmup_epoch = 2
