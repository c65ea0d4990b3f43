"""OpenCompatible's old_resnet50: ResNet-50 with GeM on 30 % of each class's images of GLDv2-clean.

It starts from ImageNet's weights: init_from=<a file of torchvision's>.
"""

from easydict import EasyDict as edict

config = edict()
config.rec = "dataset/GLDv2/gldv2_train_old_30percent_data.txt"
config.num_classes = 81313
config.network = "gem_resnet50"
config.embedding_size = 512
config.head = "softmax"  # of the embedding as it is
config.head_bias = False
config.image_size = 224
config.pixels = "imagenet"
config.augment = "resized_crop"
config.batch_size = 192
config.num_workers = 8
config.num_epoch = 30
config.lr = 0.1
config.lr_policy = "timm_cosine"
config.warmup_epoch = 1
config.warmup_from = 1e-3
config.lr_floor = 1e-2
config.weight_decay = 1e-4
config.clip_norm = 1e6  # none
