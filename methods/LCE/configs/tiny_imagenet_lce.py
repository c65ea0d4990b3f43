"""Tiny-ImageNet, half of the classes -> all: within the cone of the old class.

See runs/tiny_imagenet.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "tiny_imagenet_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "tiny_imagenet_old_class50"
