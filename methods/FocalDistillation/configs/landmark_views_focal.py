"""Landmark views, half of the landmarks -> all: the old embeddings that are right as targets.

See runs/landmark_views.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "landmark_views_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "landmark_views_old_class50"
