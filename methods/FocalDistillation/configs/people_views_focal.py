"""Drawn people, half of the people -> all: the old embeddings that are right as targets.

See runs/people_views.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "people_views_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "people_views_old_class50"
