"""The old ResNet-50 of AdvBCT's test_model.yml, on 30 % of the classes of GLDv2-clean."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/old_model.py")
config.network = "timm:resnet50"
