"""Drawn people: the old model, half of the people and half of the width.

See runs/people_views.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "people_views_new_class100.py")
config.network = "gem_w16"
config.seed = 666
config.shard = "class50"
