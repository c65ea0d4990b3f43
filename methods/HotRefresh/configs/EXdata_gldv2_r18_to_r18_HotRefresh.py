"""GLDv2, extended-data, ResNet-18 to ResNet-18: HotRefresh."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/HotRefresh/configs/new_Hotrefresh.py")
config.rec = "dataset/GLDv2/gldv2_train_new_100percent_data.txt"
config.old_model = "work_dirs/gldv2_r18_data30"
