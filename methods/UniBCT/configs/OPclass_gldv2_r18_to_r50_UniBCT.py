"""GLDv2, open-class, ResNet-18 to ResNet-50: UniBCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/UniBCT/configs/new_uniBCT.py")
config.rec = "dataset/GLDv2/gldv2_train_new_70percent_class.txt"
config.num_classes = 56920
config.unseen = "synthesise"  # the old model knows none of the classes
config.network = "timm:resnet50"
