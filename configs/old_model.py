"""AdvBCT's old_model.yml: ResNet-18 on 30 % of the classes of GLDv2-clean.

Published, it starts from ImageNet's weights: init_from=<timm's file>. See runs/gldv2_advbct.sh.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/GLDv2/gldv2_train_old_30percent_class.txt"
config.num_classes = 24393
config.network = "timm:resnet18"
config.embedding_size = 256
config.head = "softmax"  # of the embedding as it is
config.head_bias = False
config.image_size = 224  # whatever the image's aspect
config.pixels = "imagenet"
config.augment = "none"
config.batch_size = 256
config.num_workers = 4
config.amp = "off"
config.num_epoch = 30
config.lr = 0.1
config.decay_epoch = [5, 10, 20]
config.weight_decay = 5e-4
config.clip_norm = 1e6  # none
config.seed = 1234
