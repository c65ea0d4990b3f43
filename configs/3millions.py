"""insightface's 3millions:
MobileFaceNet, CosFace on made-up images, for speed, 10% of the negative classes.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "synthetic"
config.num_classes = 300000
config.num_image = 100000
config.network = "mbf"
config.margin_list = (1.0, 0.0, 0.4)
config.sample_rate = 0.1
config.batch_size = 512
config.fp16 = True
config.num_epoch = 30
config.warmup_epoch = -1
