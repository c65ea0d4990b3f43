"""insightface's wf12m_pfc02_r100: r100, CosFace on WebFace12M, 20% of the negative classes."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace12M"
config.num_classes = 617970
config.num_image = 12720066
config.network = "r100"
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.2
config.fp16 = True
config.num_epoch = 20
