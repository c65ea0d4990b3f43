"""GLDv2, open-class, ResNet-18 to ResNet-18: AdvBCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/AdvBCT/configs/new_AdvBct.py")
config.rec = "dataset/GLDv2/gldv2_train_new_70percent_class.txt"
config.num_classes = 56920
config.unseen = "synthesise"  # the old model knows none of the classes
