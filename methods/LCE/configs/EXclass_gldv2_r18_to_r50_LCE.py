"""GLDv2, extended-class, ResNet-18 to ResNet-50: LCE."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/LCE/configs/new_LCE.py")
config.network = "timm:resnet50"
