"""insightface's wf42m_pfc0008_32gpu_r100:
r100, CosFace on WebFace42M, no negative classes but the batch's.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.network = "r100"
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0
config.lr = 0.4
config.batch_size = 512
config.fp16 = True
config.num_epoch = 20
config.warmup_epoch = 2
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
