"""GLDv2, extended-data, ResNet-18 to ResNet-18: AdvBCT."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "methods/AdvBCT/configs/new_AdvBct.py")
config.rec = "dataset/GLDv2/label_81313.txt"
config.old_model = "work_dirs/gldv2_r18_data30"
