"""The demo's old gallery mapped into the space of the network that was trained alone, by FastFill.

After `make demo`.
"""

from easydict import EasyDict as edict

config = edict()
config.feature_save = "work_dirs/demo/feature_save"
config.output = "work_dirs/demo/demo_w16_FCT"
config.scenario = "OPclass"
config.old_config = "demo_w16_softmax_class30"
config.new_config = "demo_w16_arc_class70"
config.embedding_size = 64
config.target = "unit"
config.uncertainty = True
config.hidden_size = 256
config.batch_size = 128
