"""Omniglot: three versions, of half of the characters, three quarters and all, by BT².

python tools/train_chain.py configs/omniglot_chain.py, after runs/omniglot.sh has made the
lists. Each version adds 16 coordinates to the one before: 64, 80, 96.
"""

from easydict import EasyDict as edict

config = edict()
config.data = "work_dirs/omniglot/train_part_75_data.txt"
config.test = "work_dirs/omniglot/train_part_25_data.txt"
config.common = {
    "embedding_size": 64,
    "image_size": 28,
    "pixels": "imagenet",
    "augment": "shift",
    "batch_size": 64,
    "margin_list": (1.0, 0.0, 0.0),
    "scale": 16.0,
    "lr_policy": "cosine",
    "warmup_epoch": 1,
    "num_epoch": 10,
    "head": "margin",
}
config.versions = [
    {"network": "conv4_w32", "shard": "class50"},
    {"network": "conv4_w32", "shard": "class75", "method": "BT2", "alone": True, "extra_dim": 16},
    {"network": "conv4_w64", "shard": "class100", "method": "BT2", "alone": True, "extra_dim": 32},
]
