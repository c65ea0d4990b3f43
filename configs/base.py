"""Every key there is, with its default. A config states only what differs.

Names and meanings are insightface's where insightface has them. Relative paths in a config start
at the repository's root; relative paths on the command line start where you are.
"""

from easydict import EasyDict as edict

config = edict()

# network
config.network = "r50"
config.embedding_size = 512
config.amp = None  # "bf16", "fp16" or "off"; None: bf16 where the hardware has it
config.fp16 = None  # insightface's switch: True is amp="fp16" (on a GPU), False is amp="off"

# classification head
config.head = (
    "margin"  # "margin": PartialFC with margin_list; "softmax": a linear layer; "none": no head
)
config.head_bias = True  # of the linear layer
config.head_unit = False  # the linear layer sees embeddings of length 1, as BT-2's networks do
config.label_smoothing = 0.0  # of the linear layer's cross-entropy
config.margin_list = (1.0, 0.5, 0.0)  # target logit cos(m1 * theta + m2) - m3
config.scale = 64.0
config.sample_rate = 1.0  # share of the negative classes that PartialFC uses per step
config.interclass_filtering_threshold = 0.0  # drop negatives with a larger cosine; 0: keep all

# data
config.rec = None  # folder with train.rec, a .rec file, an image folder, an image list, "synthetic"
config.shard = None  # part of the set made by tools/split_dataset.py: "class30", "data70", ...
config.num_classes = None  # read from the data; checked when given
config.num_image = None  # likewise
config.image_size = 112  # height and width of the network's input
config.pixels = "face"  # aligned faces, in [-1, 1]; or "imagenet": images of any size, standardised
config.augment = "mirror"  # or "resized_crop" (and mirrored), "shift", "none"
config.rec_backend = "native"  # or "mxnet"
config.num_workers = 2
config.on_bad_record = "error"  # or "skip": train on another image of the batch, count and list it
config.max_bad_rate = 0.01  # share of skipped images above which the run stops all the same

# the old model, for compatible training
config.scenario = None  # "OPclass", "OPdata", "EXclass", "EXdata"
config.old_config = None  # name of the old model's config, e.g. "f128_r18_softmax_class30"
config.new_config = None  # name of a new model trained alone, for methods that learn from both
config.n2o_map = None  # file: old label of each new one; None: it follows from the classes' names
config.dimensions = "equal"  # or "leading", "zero_pad": how embeddings of two widths are compared
config.feature_save = "feature_save"  # where the tools keep the old model's artefacts
config.parity = "corrected"  # or "published": the references' arithmetic, defects included

# optimisation
config.batch_size = 128  # per process
config.gradient_acc = 1  # micro-batches per step, averaged
config.num_epoch = None
config.warmup_epoch = 0
config.optimizer = "sgd"  # or "adam", "adamw"
config.lr = 0.1
config.lr_power = (
    2.0  # lr * (1 - progress) ** lr_power after the warm-up; insightface has 1, MixBCT 2
)
config.lr_policy = "poly"  # or "cosine": half a wave down to 0 after the warm-up
config.decay_epoch = None  # e.g. [20, 26, 32]: lr / 10 from each of these epochs on, instead
config.momentum = 0.9
config.weight_decay = 5e-4
config.clip_norm = 5.0  # of the backbone's gradient
config.freeze_statistics_at = None  # share of the training after which batch norms keep theirs

# the run
config.seed = 666
config.output = None  # None: work_dirs/<config name>
config.resume = False  # continue this config's run in `output`, or keep it if it is finished
config.overwrite = False  # replace a run that does not match
config.save_every = 1000  # steps between checkpoints; there is one after every epoch, too
config.keep_checkpoints = 2  # how many are left
config.timeout = 10.0  # minutes that a rank waits for the others before the job is taken down
config.frequent = 20  # steps between log lines
config.verbose = 2000  # steps between verifications
config.val_targets = []  # names of verification sets, <rec_val>/<name>.bin
config.rec_val = None  # their folder; None: the folder of `rec`
