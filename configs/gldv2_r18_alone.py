"""GLDv2-clean whole, ResNet-18 trained alone: AdvBCT's upper bound."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/old_model.py")
config.rec = "dataset/GLDv2/gldv2_train_new_100percent_data.txt"
config.num_classes = 81313
