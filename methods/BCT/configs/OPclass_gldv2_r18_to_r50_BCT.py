"""GLDv2, open-class, ResNet-18 to ResNet-50: BCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/BCT/configs/new_BCT.py")
config.rec = "dataset/GLDv2/gldv2_train_new_70percent_class.txt"
config.num_classes = 56920
config.network = "timm:resnet50"
config.influence = "prototype"  # the old classifier knows none of the classes
