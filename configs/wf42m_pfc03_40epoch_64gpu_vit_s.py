"""insightface's wf42m_pfc03_40epoch_64gpu_vit_s:
ViT-S, CosFace on WebFace42M, 30% of the negative classes.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.network = "vit_s_dp005_mask_0"
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.3
config.optimizer = "adamw"
config.lr = 0.001
config.weight_decay = 0.1
config.batch_size = 384
config.fp16 = True
config.num_epoch = 40
config.warmup_epoch = 4
