"""GLDv2, extended-data, ResNet-18 to ResNet-18: BCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/BCT/configs/new_BCT.py")
config.rec = "dataset/GLDv2/label_81313.txt"
config.old_model = "work_dirs/gldv2_r18_data30"
