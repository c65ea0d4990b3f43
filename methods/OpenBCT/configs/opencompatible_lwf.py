"""OpenCompatible's lwf, ResNet-50 to ResNet-50, 30 % of each of GLDv2's classes -> all.

Its loss lacks Li and Hoiem's factor of the temperature's square, which is 1e-4 here.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/opencompatible_old.py")
config.rec = "dataset/GLDv2/gldv2_train_new_100percent_data.txt"
config.old_model = "work_dirs/opencompatible_old"
config.terms = {"cls": 1.0, "lwf": 1e4}
config.lwf_temperature = 0.01
config.teacher = "view"
config.fill = "off"
