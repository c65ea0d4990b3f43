"""FCT for runs/benchmark.sh: the old gallery mapped into the space of the network trained alone."""

from easydict import EasyDict as edict

config = edict()
config.target = "unit"  # templates are compared by cosine
config.hidden_size = 512
config.batch_size = 256
config.num_epoch = 40
config.lr = 2e-3
