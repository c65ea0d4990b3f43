"""ImageNet: AlexNet -> VGG-13 -> ResNet-50 -> ViT-B/16 by BT², the published chain.

See runs/imagenet_chain.sh. All versions see all classes; only the network changes. Widths are
128, 160, 192 and 224: each step adds 32 coordinates, and an embedding begins with the one before.
Published, the ViT starts from weights trained on ImageNet-21k, and BT² smooths no labels; the
published code can't run this chain.
"""

from easydict import EasyDict as edict

config = edict()
config.data = "dataset/imagenet/train"
config.test = "dataset/imagenet/val"
config.common = {
    "embedding_size": 128,
    "head": "softmax",
    "head_bias": False,
    "head_unit": True,
    "label_smoothing": 0.1,
    "image_size": 224,
    "pixels": "imagenet",
    "augment": "resized_crop",
    "batch_size": 32,  # on each of 8 GPUs
    "num_epoch": 100,
    "warmup_epoch": 20,
    "optimizer": "adam",
    "lr": 1e-3,
    "lr_policy": "cosine",
    "weight_decay": 0.0,
    "clip_norm": 1e9,  # not clipped
    "num_workers": 8,
}
config.versions = [
    {"network": "alexnet"},
    {"network": "vgg13_bn", "method": "BT2", "alone": True, "extra_dim": 32},
    {"network": "resnet50_narrow", "method": "BT2", "alone": True, "extra_dim": 64},
    {"network": "vit_b_16", "method": "BT2", "alone": True, "extra_dim": 96},
]
