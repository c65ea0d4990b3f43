"""Landmark views: the old model, half of the landmarks and half of the width.

See runs/landmark_views.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "landmark_views_new_class100.py")
config.network = "gem_w16"
config.head = "softmax"  # it keeps its classifier
config.seed = 666
config.shard = "class50"
