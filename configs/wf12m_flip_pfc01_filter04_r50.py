"""insightface's wf12m_flip_pfc01_filter04_r50:
r50, CosFace on WebFace12M with 40 % wrong labels, 10% of the negatives, the nearest left out.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace12M_FLIP40"
config.num_classes = 617970
config.num_image = 12720066
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.1
config.interclass_filtering_threshold = 0.4
config.fp16 = True
config.num_epoch = 20
config.warmup_epoch = 2
