"""insightface's wf12m_conflict_r50_pfc03_filter04:
r50, CosFace on WebFace12M with conflicting labels, 30% of the negatives, the nearest left out.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace12M_Conflict"
config.num_classes = 1017970
config.num_image = 12720066
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.3
config.interclass_filtering_threshold = 0.4
config.fp16 = True
config.num_epoch = 20
config.warmup_epoch = 2
