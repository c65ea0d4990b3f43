"""OpenCompatible's triplet_ract, ResNet-50 to ResNet-50, 30 % of each of GLDv2's classes -> all."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/opencompatible_old.py")
config.rec = "dataset/GLDv2/gldv2_train_new_100percent_data.txt"
config.old_model = "work_dirs/opencompatible_old"
config.loss = "triplet_ract"
