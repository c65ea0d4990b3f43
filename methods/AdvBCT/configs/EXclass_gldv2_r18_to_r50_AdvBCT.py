"""GLDv2, extended-class, ResNet-18 to ResNet-50: AdvBCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/AdvBCT/configs/new_AdvBct.py")
config.network = "timm:resnet50"
