"""AdvBCT's old ResNet-18 on 30 % of each class's images of GLDv2-clean."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/old_model.py")
config.rec = "dataset/GLDv2/gldv2_train_old_30percent_data.txt"
config.num_classes = 81313
