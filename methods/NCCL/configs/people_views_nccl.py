"""Drawn people, half of the people -> all: contrast with a queue of old embeddings.

See runs/people_views.sh.
"""

from bct.config import execute
from bct.files import ROOT

config = execute(ROOT / "configs" / "people_views_new_class100.py")  # the same network
config.scenario = "EXclass"
config.old_config = "people_views_old_class50"
config.queue_size = 128
config.head = "margin"  # its loss is of cosines; without a margin
config.margin_list = (1.0, 0.0, 0.0)
config.scale = 16.0
config.label_smoothing = 0.0
