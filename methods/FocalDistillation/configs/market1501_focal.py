"""Market-1501, half of the people -> all: FocalDistillation. See runs/market1501.sh."""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs/market1501_new_class100.py")
config.scenario = "EXclass"
config.old_config = "market1501_old_class50"
