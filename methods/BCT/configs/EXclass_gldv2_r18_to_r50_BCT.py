"""GLDv2, extended-class, ResNet-18 to ResNet-50: BCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/BCT/configs/new_BCT.py")
config.network = "timm:resnet50"
