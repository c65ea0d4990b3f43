"""Market-1501: ResNet-101 on all 751 people, trained alone, by AdvBCT's recipe for people.

It starts from ImageNet's weights: init_from=<timm's file>. Published, the rate stays at 0.008,
since its schedule moves another optimiser: lr_policy="constant". See runs/market1501.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "work_dirs/market1501/bounding_box_train.txt"
config.shard = "class100"
config.network = "timm:resnet101"
config.embedding_size = 256
config.image_size = (256, 128)
config.pixels = "imagenet"
config.augment = "person"
config.batch_size = 64
config.images_per_class = 4
config.num_workers = 4
config.amp = "off"
config.head = "softmax"
config.head_bias = False
config.head_init = 0.001
config.triplet_weight = 1.0
config.num_epoch = 120
config.warmup_epoch = 5
config.lr = 8e-3
config.lr_policy = "timm_cosine"
config.lr_steps = "epoch"
config.warmup_from = 0.01
config.lr_floor = 0.002
config.bias_lr_factor = 2.0
config.weight_decay = 1e-4
config.clip_norm = 1e6  # none
config.seed = 1234
