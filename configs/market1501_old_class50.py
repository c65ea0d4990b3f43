"""Market-1501: the old ResNet-50 on half of the people. See runs/market1501.sh."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/market1501_new_class100.py")
config.network = "timm:resnet50"
config.shard = "class50"
