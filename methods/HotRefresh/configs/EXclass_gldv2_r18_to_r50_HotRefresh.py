"""GLDv2, extended-class, ResNet-18 to ResNet-50: HotRefresh."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/HotRefresh/configs/new_Hotrefresh.py")
config.network = "timm:resnet50"
