"""Omniglot, half of the classes -> all: within the cone of the old class.

See runs/omniglot.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "omniglot_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "omniglot_old_class50"
