"""AdvBCT's test_model.yml: the ResNet-50 that it tests, on the whole list."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/HotRefresh/configs/new_Hotrefresh.py")
config.rec = "dataset/GLDv2/gldv2_train_new_100percent_data.txt"
config.network = "timm:resnet50"
config.old_model = "work_dirs/gldv2_r50_class30"
