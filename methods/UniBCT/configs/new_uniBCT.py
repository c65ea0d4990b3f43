"""AdvBCT's new_uniBCT.yml: extended-class, ResNet-18 to ResNet-18. See runs/gldv2_advbct.sh."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/old_model.py")
config.rec = "dataset/GLDv2/gldv2_train_new_100percent_class.txt"
config.num_classes = 81313
config.old_model = "work_dirs/old_model"
config.reading = "advbct"
config.unseen = "ignore"
