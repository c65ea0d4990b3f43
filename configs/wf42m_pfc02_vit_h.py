"""insightface's wf42m_pfc02_vit_h: ViT-H, CosFace on WebFace42M, 50% of the negative classes."""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.network = "vit_h"
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.5
config.optimizer = "adamw"
config.lr = 0.001
config.weight_decay = 0.1
config.batch_size = 768
config.fp16 = True
config.num_epoch = 16
config.warmup_epoch = 2
