"""GLDv2, open-class, ResNet-18 to ResNet-50: HotRefresh."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/HotRefresh/configs/new_Hotrefresh.py")
config.rec = "dataset/GLDv2/gldv2_train_new_70percent_class.txt"
config.num_classes = 56920
config.network = "timm:resnet50"
