"""Tiny-ImageNet, half of the classes -> all: 16 extra coordinates.

See runs/tiny_imagenet.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "tiny_imagenet_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "tiny_imagenet_old_class50"
config.new_config = "tiny_imagenet_new_class100"
config.extra_dim = 16
config.head = "margin"
