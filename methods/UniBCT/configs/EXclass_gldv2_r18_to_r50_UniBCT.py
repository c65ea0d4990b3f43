"""GLDv2, extended-class, ResNet-18 to ResNet-50: UniBCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/UniBCT/configs/new_uniBCT.py")
config.network = "timm:resnet50"
