"""insightface's wf12m_mbf: MobileFaceNet, CosFace on WebFace12M."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace12M"
config.num_classes = 617970
config.num_image = 12720066
config.network = "mbf"
config.margin_list = (1.0, 0.0, 0.4)
config.weight_decay = 0.0001
config.fp16 = True
config.num_epoch = 20
