"""Omniglot, half of the classes -> all: contrast with old embeddings.

See runs/omniglot.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "omniglot_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "omniglot_old_class50"
config.terms = {"cls": 1.0, "contrastive": 1.0}
