"""insightface's wf12m_r50: r50, CosFace on WebFace12M."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace12M"
config.num_classes = 617970
config.num_image = 12720066
config.margin_list = (1.0, 0.0, 0.4)
config.fp16 = True
config.num_epoch = 20
