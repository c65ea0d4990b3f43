"""Every key there is, with its default and what it may be. A config states only what differs:
config.batch_size = 64.

Names and meanings are insightface's where insightface has them. Relative paths in a config start
at the repository's root; relative paths on the command line start where you are. bct/keys.py says
what whole(128, least=1) and the like take; a choice lists all there is, the default first.
"""

from easydict import EasyDict as edict

from bct.keys import choice, either, flag, image_size, number, path, several, text, whole
from bct.scenarios import SCENARIOS

config = edict()

# whose defaults count for what a file leaves unsaid; None: that follows from its name and keys, see
# bct/conventions.py
config.convention = choice(None, "bct", "mixbct", "insightface")

# network
config.network = text("r50")
config.embedding_size = whole(512, least=1, most=65536)
config.amp = choice(None, "bf16", "fp16", "off")  # None: bf16 where the hardware has it
config.fp16 = flag(None)  # insightface's switch: True is amp="fp16" (on a GPU), False is amp="off"
# a file of weights, or a model's folder, to start from instead of drawn weights
config.init_from = path(None)
# ["conv1", "layer1"]: these parts, or 0.5: this share of the parameters from the input on, stay as
# they are
config.freeze = either(None, several(text(None), []), number(None, 0, 1))

# classification head: PartialFC with margin_list, a linear layer, or none
config.head = choice("margin", "softmax", "none")
config.head_bias = flag(True)  # of the linear layer
# the linear layer sees embeddings of length 1, as BT-2's networks do
config.head_unit = flag(False)
config.label_smoothing = number(0.0, 0, 1)  # of the linear layer's cross-entropy
# deviation of the linear layer's drawn weights, e.g. 0.001; None: as torch draws them
config.head_init = number(None, above=0)
# beside the classification, see bct/training/metric_terms.py: batch-hard triplets, which need
# images_per_class, with a margin or, None, the soft one; and the distances from class centres,
# which follow at a rate of their own
config.triplet_weight = number(0.0, 0)
config.triplet_hard_margin = number(None, 0)
config.centre_weight = number(0.0, 0)
config.centre_rate = number(0.5, above=0)
# target logit cos(m1 * theta + m2) - m3
config.margin_list = several(number(None), (1.0, 0.5, 0.0), length=3)
config.scale = number(64.0, above=0)
# share of the negative classes that PartialFC uses per step; 0: none but the batch's own classes
config.sample_rate = number(1.0, 0, 1)
# drop negatives with a larger cosine; 0: keep all
config.interclass_filtering_threshold = number(0.0, 0, 1)

# data
# folder with train.rec, a .rec file, an image folder, an image list, "synthetic"
config.rec = path(None)
# part of the set made by tools/split_dataset.py: "class30", "data70", ...
config.shard = text(None)
config.num_classes = whole(None, least=1)  # read from the data; checked when given
config.num_image = whole(None, least=1)  # likewise
# height and width of the network's input: one number, or two: (256, 128)
config.image_size = image_size(112)
# aligned faces, in [-1, 1], or images of any size, standardised
config.pixels = choice("face", "imagenet")
# "resized_crop" mirrors, too; so does "person", which pads, crops and erases, see bct/data/views.py
config.augment = choice("mirror", "resized_crop", "shift", "person", "none")
# batches of batch_size / images_per_class classes, so many images of each; None: of any images
config.images_per_class = whole(None, least=2)
config.rec_backend = choice("native", "mxnet")
config.num_workers = whole(2, most=1024)
# "skip": train on another image of the batch, count and list it
config.on_bad_record = choice("error", "skip")
# share of skipped images above which the run stops all the same
config.max_bad_rate = number(0.01, 0, 1)

# the old model, for compatible training
config.scenario = choice(None, *SCENARIOS)
config.old_config = text(None)  # name of the old model's config, e.g. "f128_r18_softmax_class30"
# name of a new model trained alone, for methods that learn from both
config.new_config = text(None)
# in place of scenario and old_config: the old model's folder, a run's or an imported one; `rec` is
# then the new model's own training set
config.old_model = path(None)
config.new_model = path(None)  # likewise, of the new model trained alone
# file: old label of each new one; None: it follows from the classes' names
config.n2o_map = path(None)
# how embeddings of two widths are compared
config.dimensions = choice("equal", "leading", "zero_pad")
config.feature_save = path("feature_save")  # where the tools keep the old model's artefacts
# "published": the references' arithmetic, defects included
config.parity = choice("corrected", "published")

# optimisation
config.batch_size = whole(128, least=1, most=2**20)  # per process
# micro-batches per step, averaged; with parity published insightface's are added up
config.gradient_acc = whole(1, least=1)
config.num_epoch = whole(None, least=1)
config.warmup_epoch = whole(0, least=-1)  # -1: the rate starts where an epoch would have left it
config.optimizer = choice("sgd", "adam", "adamw")
config.lr = number(0.1, above=0)
config.backbone_lr_factor = number(1.0, above=0)  # of the backbone's rate, beside that of the head
config.bias_lr_factor = number(1.0, above=0)  # of the biases' rate, the head's among them
config.bias_weight_decay = number(None, 0)  # of the biases; None: as of all else
# lr * (1 - progress) ** lr_power after the warm-up; insightface has 1, MixBCT 2
config.lr_power = number(2.0, 0)
# after the warm-up; "cosine": half a wave; "timm_cosine": timm's, whose wave has begun with the
# training; see bct/training/optimizer.py
config.lr_policy = choice("poly", "cosine", "timm_cosine", "constant")
# e.g. [20, 26, 32]: lr / 10 from each of these epochs on, instead; with a warm-up before it only if
# warmup_from says where that starts
config.decay_epoch = several(whole(None), None)
config.warmup_from = number(0.0, 0, 1)  # share of lr that the warm-up starts from
config.lr_floor = number(0.0, 0, 1)  # share of lr that a cosine or polynomial ends at
config.lr_steps = choice("batch", "epoch")  # "epoch": one rate for the whole of an epoch
config.momentum = number(0.9, 0, below=1)
config.weight_decay = number(5e-4, 0)
config.clip_norm = number(5.0, above=0)  # of the backbone's gradient
# share of the training after which batch norms keep theirs
config.freeze_statistics_at = number(None, 0, 1)

# the run
config.seed = whole(666, most=2**63 - 1)
config.output = path(None)  # None: work_dirs/<config name>
# continue this config's run in `output`, or keep it if it is finished; a larger num_epoch than it
# had makes it longer
config.resume = flag(False)
config.overwrite = flag(False)  # replace a run that does not match
config.lock = flag(True)  # keep other runs out of `output`; False where a file system has no locks
# steps between checkpoints; there is one after every epoch, too
config.save_every = whole(1000, least=1)
config.keep_checkpoints = whole(2, least=1)  # how many are left
# minutes that a rank waits for the others before the job is taken down
config.timeout = number(10.0, above=0, most=1e6)
config.frequent = whole(20, least=1)  # steps between log lines
config.verbose = whole(2000, least=1)  # steps between validations

# validation, every `verbose` steps and at the end; bct/validation.py has the figures' names
config.val_targets = several(text(None), [])  # names of verification sets, <rec_val>/<name>.bin
config.rec_val = path(None)  # their folder; None: the folder of `rec`
config.strict_val = flag(False)  # True: a set that is not there stops the training before it starts
config.val_data = path(None)  # images with classes: anything that `rec` takes
# True: val_data's labels are the training set's, where not both name their classes
config.val_same_labels = flag(False)
# .npy: the old model's features of val_data, in its order; None: those in old_model's folder
config.val_old_features = path(None)
# the figure that best.pt is chosen by, e.g. "lfw", "val/cross_map". None: the sets' "mean"; with
# val_data alone "val/loo_map", or "val/top1" where no class has two images
config.best = text(None)

# Weights & Biases, see bct/wandb_run.py; needs the extra: pip install -e ".[wandb]"
config.using_wandb = flag(False)
# written nowhere; None: WANDB_API_KEY, or what `wandb login` has kept
config.wandb_key = text(None)
config.wandb_entity = text(None)
config.wandb_project = text(None)
config.suffix_run_name = text(None)  # a run is called <date>_<time>_GPU<rank>[_<suffix_run_name>]
config.notes = text(None)
config.wandb_log_all = flag(False)  # a run for every rank; False: rank 0's alone
config.wandb_resume = flag(False)  # a resumed training goes on in its former run of wandb
config.save_artifacts = flag(False)  # keep model.pt of every epoch there
