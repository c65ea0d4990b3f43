"""The configs for GLDv2 and Market-1501, against what AdvBCT's and OpenCompatible's own files say,
typed out below."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import get_model
from bct.config import base_config, load_config
from bct.files import ROOT
from bct.method import Method, load_method
from bct.training.heads import SoftmaxHead
from bct.training.optimizer import learning_rate

# ---- AdvBCT: configs/*.yml and configs/defaults.py, and what its code has in place of keys

OLD_CLASSES, ALL_CLASSES, OTHER_CLASSES = 24393, 81313, 56920
ADVBCT = {  # theirs: ours, of every landmark config
    "MODEL.EMB_DIM 256": {"embedding_size": 256},
    "TRAIN.EPOCHS 30": {"num_epoch": 30},
    "TRAIN.BATCH_SIZE 256": {"batch_size": 256},
    "TRAIN.INPUT_SIZE 224": {"image_size": 224, "pixels": "imagenet", "augment": "none"},
    "LOSS.TYPE softmax": {"head": "softmax", "head_bias": False, "head_unit": False},
    "USE_AMP False": {"amp": "off"},
    "SEED 1234": {"seed": 1234},
    "SGD": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "MultiStepLR": {"decay_epoch": [5, 10, 20], "warmup_epoch": 0},
    "no sampler": {"images_per_class": None, "label_smoothing": 0.0, "triplet_weight": 0.0},
}
LISTS = "dataset/GLDv2/gldv2_train_"
PART = "old_30percent_class"
FILES = {  # file: network, classes, list
    "configs/old_model.py": ("resnet18", OLD_CLASSES, PART),
    "configs/gldv2_r50_class30.py": ("resnet50", OLD_CLASSES, PART),
    "configs/gldv2_r18_data30.py": ("resnet18", ALL_CLASSES, "old_30percent_data"),
    "configs/gldv2_r18_alone.py": ("resnet18", ALL_CLASSES, "new_100percent_data"),
    "configs/gldv2_r50_alone.py": ("resnet50", ALL_CLASSES, "new_100percent_data"),
    "methods/HotRefresh/configs/test_model.py": ("resnet50", ALL_CLASSES, "new_100percent_data"),
}
METHODS = {  # ours: its yml, and what COMP_LOSS, LOSS and TRAIN.THRESHOLD come to
    "AdvBCT": ("new_AdvBct", {
        "reading": "advbct", "boundary": "elastic", "adversarial": True, "threshold": 1.0,
        "adv_weight": None, "hidden": 100, "unseen": "ignore",
    }),
    "BCT": ("new_BCT", {"influence": "old_classifier", "influence_weight": 1.0}),
    "HotRefresh": ("new_Hotrefresh", {
        "loss": "contra_ract", "temperature": 0.01, "topk": 10, "weight": 1.0,
    }),
    "LCE": ("new_LCE", {"reading": "advbct", "unseen": "ignore"}),
    "UniBCT": ("new_uniBCT", {
        "reading": "advbct", "influence_angle": 0.3, "influence_weight": 1.0, "unseen": "ignore",
    }),
}  # fmt: skip
ALLOCATIONS = {  # the new model's list and classes, the old model's config
    "EXclass": ("new_100percent_class", ALL_CLASSES, "old_model"),
    "EXdata": ("new_100percent_data", ALL_CLASSES, "gldv2_r18_data30"),
    "OPclass": ("new_70percent_class", OTHER_CLASSES, "old_model"),
    "OPdata": ("new_70percent_data", ALL_CLASSES, "gldv2_r18_data30"),
}
# in the open allocation by classes nothing of the old model is of a new class
OPEN = {method: {"unseen": "synthesise"} for method in ("AdvBCT", "LCE", "UniBCT")}
OPEN["BCT"] = {"influence": "prototype"}

# ---- OpenCompatible: config.json under the defaults of its command line

OPENCOMPATIBLE = {
    "--arch resnet50, --emb_dim 512": {"network": "gem_resnet50", "embedding_size": 512},
    "--class_num 81313": {"num_classes": ALL_CLASSES},
    "-e 30, -bs 192, --workers 8": {"num_epoch": 30, "batch_size": 192, "num_workers": 8},
    "--train_img_size 224": {"image_size": 224, "pixels": "imagenet", "augment": "resized_crop"},
    "--loss_func softmax": {"head": "softmax", "head_bias": False},
    "--lr .1": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "--use_amp": {"amp": None},
}
LOSSES = {  # --comp_loss_type: ours, and the other flags' defaults
    "bct": ("BCT", {"influence": "old_classifier", "influence_weight": 1.0}),
    "bct_ract": ("BCTRACT", {"influence": None, "influence_weight": 1.0}),
    "fd": ("FocalDistillation", {"alpha": 1.0, "beta": 5.0, "weight": 1.0, "gate": None}),
    "l2": ("OpenBCT", {"terms": {"cls": 1.0, "l2": 1 / 512}, "teacher": "view"}),
    "lwf": ("OpenBCT", {"terms": {"cls": 1.0, "lwf": 1 / 0.01**2}, "lwf_temperature": 0.01}),
    **{loss: ("HotRefresh", {"loss": loss, "temperature": 0.01, "margin": 0.8, "topk": 10})
       for loss in ("contra", "contra_ract", "triplet", "triplet_ract")},
}  # fmt: skip

# ---- AdvBCT's re-identification, as it is meant

PEOPLE = {
    "TRAIN.EPOCHS 120": {"num_epoch": 120},
    "TRAIN.BATCH_SIZE 256, of 4 ranks": {"batch_size": 64, "images_per_class": 4},
    "IF_LABELSMOOTH off": {"label_smoothing": 0.0},
    "NO_MARGIN True": {"triplet_weight": 1.0, "triplet_hard_margin": None, "centre_weight": 0.0},
    "Linear, N(0, .001)": {"head": "softmax", "head_bias": False, "head_init": 0.001},
    "BASE_LR": {"lr": 8e-3, "momentum": 0.9, "weight_decay": 1e-4, "bias_lr_factor": 2.0},
    "TransReID's images": {"image_size": (256, 128), "augment": "person", "pixels": "imagenet"},
    "EMB_DIM": {"embedding_size": 256, "amp": "off", "seed": 1234},
}
STEPS = 3  # of an epoch


def config(path, *words):
    path = Path(path)
    method = load_method(path.parts[1]) if path.parts[0] == "methods" else Method
    return load_config(ROOT / path, list(words), method.defaults)


def says(cfg, *facts):
    for fact in facts:
        assert {key: cfg[key] for key in fact} == fact


def new_file(method, allocation, depth):
    if (allocation, depth) == ("EXclass", 18):
        return f"methods/{method}/configs/{METHODS[method][0]}.py"
    return f"methods/{method}/configs/{allocation}_gldv2_r18_to_r{depth}_{method}.py"


NEW = [(m, a, depth) for m in METHODS for a in ALLOCATIONS for depth in (18, 50)]


def test_all_are_there_and_no_others():
    want = {ROOT / new_file(*case) for case in NEW}
    found = set(ROOT.glob("methods/*/configs/*_gldv2_*.py"))
    found |= set(ROOT.glob("methods/*/configs/new_*.py"))
    assert found == want and len(want) == 40
    alone = {ROOT / file for file in FILES}
    assert set(ROOT.glob("configs/gldv2_*.py")) < alone and all(map(Path.is_file, alone))
    losses = {ROOT / f"methods/{m}/configs/opencompatible_{x}.py" for x, (m, _) in LOSSES.items()}
    assert set(ROOT.glob("methods/*/configs/opencompatible_*.py")) == losses


def test_the_shares_of_the_classes():
    assert int(ALL_CLASSES * 0.3) == OLD_CLASSES and ALL_CLASSES - OLD_CLASSES == OTHER_CLASSES


@pytest.mark.parametrize("file", FILES)
def test_trained_alone(file):
    network, classes, part = FILES[file]
    cfg = config(file)
    says(cfg, *ADVBCT.values(), {"network": f"timm:{network}", "num_classes": classes})
    assert cfg.rec == str(ROOT / f"{LISTS}{part}.txt")


@pytest.mark.parametrize(("method", "allocation", "depth"), NEW)
def test_new_model(method, allocation, depth):
    part, classes, old = ALLOCATIONS[allocation]
    cfg = config(new_file(method, allocation, depth))
    own = METHODS[method][1] | (OPEN.get(method, {}) if allocation == "OPclass" else {})
    says(cfg, *ADVBCT.values(), own)
    says(cfg, {"network": f"timm:resnet{depth}", "num_classes": classes, "init_from": None})
    assert cfg.rec == str(ROOT / f"{LISTS}{part}.txt")
    assert cfg.old_model == str(ROOT / "work_dirs" / old) and (ROOT / f"configs/{old}.py").is_file()
    # the same data, schedule and network alone: only the method makes the difference
    alone = config(f"configs/gldv2_r{depth}_alone.py")
    same = base_config().keys() - {"old_model", "output", "rec", "num_classes"}
    assert {key: alone[key] for key in same} == {key: cfg[key] for key in same}


def test_old_model_of_the_tested_one():
    cfg = config("methods/HotRefresh/configs/test_model.py")
    says(cfg, METHODS["HotRefresh"][1])
    assert cfg.old_model == str(ROOT / "work_dirs/gldv2_r50_class30")


def test_margins_where_the_yml_says_arcface():
    """LOSS.TYPE arcface, SCALE 30, MARGIN 0.3, as docs/published_configs.md has it."""
    words = ["head=margin", "margin_list=(1,0.3,0)", "scale=30"]
    cfg = config("methods/BCT/configs/new_BCT.py", *words)
    says(cfg, {"head": "margin", "margin_list": (1.0, 0.3, 0.0), "scale": 30.0})


@pytest.mark.parametrize("loss", LOSSES)
def test_opencompatible(loss):
    method, own = LOSSES[loss]
    cfg = config(f"methods/{method}/configs/opencompatible_{loss}.py")
    says(cfg, *OPENCOMPATIBLE.values(), own)
    assert cfg.rec == str(ROOT / f"{LISTS}new_100percent_data.txt")
    assert cfg.old_model == str(ROOT / "work_dirs/opencompatible_old")


def test_opencompatibles_old_model():
    cfg = config("configs/opencompatible_old.py")
    says(cfg, *OPENCOMPATIBLE.values())
    assert cfg.rec == str(ROOT / f"{LISTS}old_30percent_data.txt")


@pytest.mark.parametrize("side", ["new_class100", "old_class50"])
def test_people(side):
    cfg = config(f"configs/market1501_{side}.py")
    says(cfg, *PEOPLE.values())
    assert cfg.network == f"timm:resnet{101 if 'new' in side else 50}"
    for file in ROOT.glob("methods/*/configs/market1501_*.py"):
        new = config(file.relative_to(ROOT))
        says(new, *PEOPLE.values(), {"network": "timm:resnet101", "scenario": "EXclass"})


# ---- rates


def rates(file, *words):
    cfg = config(file, *words)
    return [learning_rate(cfg, step, STEPS) for step in range(STEPS * cfg.num_epoch)]


@pytest.mark.parametrize("file", ["configs/old_model.py", "methods/AdvBCT/configs/new_AdvBct.py"])
def test_advbcts_rate_is_torchs(file):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 10, 20], 0.1)
    found = rates(file)
    for epoch in range(30):
        want = optimizer.param_groups[0]["lr"]
        assert found[epoch * STEPS : (epoch + 1) * STEPS] == pytest.approx([want] * STEPS)
        optimizer.step()
        steps.step()


def timms(t, end, warm, base, start, floor):
    """timm's cosine: the wave runs from step 0, the warm-up lies over its beginning."""
    if t < warm:
        return start + t * (base - start) / warm
    return floor + (base - floor) * math.cos(math.pi * t / end / 2) ** 2


def test_opencompatibles_rate():
    end = 30 * STEPS
    want = [timms(t, end, STEPS, 0.1, 0.1 * 1e-3, 0.1 * 1e-2) for t in range(end)]
    assert rates("configs/opencompatible_old.py") == pytest.approx(want, rel=1e-12)
    assert rates("methods/BCT/configs/opencompatible_bct.py") == pytest.approx(want, rel=1e-12)


def test_rate_of_people():
    file, base = "configs/market1501_new_class100.py", 8e-3
    epochs = [timms(e, 120, 5, base, 0.01 * base, 0.002 * base) for e in range(120)]
    want = [rate for rate in epochs for _ in range(STEPS)]
    assert rates(file) == pytest.approx(want, rel=1e-12)
    assert set(rates(file, "lr_policy=constant", "warmup_epoch=0")) == {base}  # as it came out


# ---- networks and classifiers


def test_advbcts_network():
    pytest.importorskip("timm")
    cfg = config("configs/old_model.py")
    network = get_model(cfg.network, cfg.embedding_size)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["projection_dim.weight"] == (256, 512) and "projection_dim.bias" not in shapes
    assert shapes["bn.running_mean"] == (256,) and "convnet.layer4.1.bn2.weight" in shapes
    head = SoftmaxHead(256, 7, bias=cfg.head_bias)
    assert {k: tuple(v.shape) for k, v in head.named_parameters()} == {"weight": (7, 256)}


def test_opencompatibles_network():
    cfg = config("configs/opencompatible_old.py")
    with torch.device("meta"):
        network = get_model(cfg.network, cfg.embedding_size)
    linear = network.embedding
    assert (linear.in_features, linear.out_features) == (2048, 512) and linear.bias is not None
    assert not any(isinstance(part, nn.BatchNorm1d) for part in network.modules())
    assert not any(key.endswith("avgpool.p") for key, _ in network.named_parameters())  # p = 3


# ---- the page


def page_tables():
    """The rows of the sections of AdvBCT and OpenCompatible: their cells."""
    text = (ROOT / "docs/published_configs.md").read_text()
    section = text.split("\n## AdvBCT and OpenCompatible\n")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]


def test_the_page_names_keys_that_are_there():
    known = set(base_config())
    for folder in ROOT.glob("methods/*/train.py"):
        known |= set(load_method(folder.parent.name).defaults)
    ours = " ".join(row[1] for row in page_tables())
    given = set(re.findall(r"`(\w+)=", ours))
    assert given <= known
    assert {"num_epoch", "batch_size", "topk", "init_from"} <= given | set(
        re.findall(r"`(\w+)`", ours)
    )


LIVE = """
MODEL.ARCH MODEL.EMB_DIM MODEL.NUM_CLASSES OLD_MODEL NEW_MODEL PRETRAINED PRETRAINED_PATH
TRAIN.TYPE TRAIN.EPOCHS TRAIN.BATCH_SIZE TRAIN.INPUT_SIZE TRAIN.FILE_DIR TRAIN.ROOT TRAIN.THRESHOLD
TRAIN.DATASET TRAIN.SAVE_FREQ TRAIN.VAL_FREQ TRAIN.PRINT_FREQ LOSS.TYPE LOSS.SCALE LOSS.MARGIN
COMP_LOSS.TYPE COMP_LOSS.ELASTIC_BOUNDARY COMP_LOSS.TEMPERATURE COMP_LOSS.TRIPLET_MARGIN
COMP_LOSS.TOPK_NEG COMP_LOSS.WEIGHT COMP_LOSS.DISTILLATION_TEMP COMP_LOSS.FOCAL_BETA
COMP_LOSS.FOCAL_ALPHA UPGRADE_LOSS EVAL.OLD_SAVE_FILE EVAL.DATASET EVAL.HOT_REFRESH EVAL.BCT_TYPE
EVAL.SAVE_DIR OUTPUT TAG SEED USE_AMP GATHER_ALL DIST_BACKEND MULTIPROCESSING_DISTRIBUTED
TRAIN.SAMPLER TRAIN.METRIC_LOSS_TYPE TRAIN.TRIPLET_LOSS_WEIGHT TRAIN.CENTER_LOSS_WEIGHT
TRAIN.IF_LABELSMOOTH TRAIN.LR_SCHEDULER.BASE_LR TRAIN.LR_SCHEDULER.BIAS_LR_FACTOR
TRAIN.LR_SCHEDULER.WEIGHT_DECAY TRAIN.LR_SCHEDULER.CENTER_LR TRAIN.WARMUP_EPOCHS
"""
FLAGS = """
--arch --emb_dim --class_num --pretrained_model_path --old_pretrained_model_path
--train_data_dir --train_img_list --train_img_size --lr_scheduler --lr_adjust_interval --lr -e -bs
--workers --save_period --val_period --loss_func --arcface_scale --arcface_margin --comp_loss_type
--comp_loss_temp --comp_loss_dist_temp --comp_loss_triplet_margin --comp_loss_topk
--comp_loss_focal_beta --comp_loss_focal_alpha --comp_loss_weight --gather_all --test_data_name
--use_pos_sampler --use_amp --seed
"""


@pytest.mark.parametrize("theirs", re.findall(r"\S+", LIVE + FLAGS))
def test_the_page_has_every_key_that_does_something(theirs):
    words = {word for row in page_tables() for word in re.findall(r"`([^`]+)`", row[0])}
    words = {part.strip() for word in words for part in word.split(",")}
    assert theirs in words


def test_the_page_names_the_files():
    text = (ROOT / "docs/published_configs.md").read_text()
    for file in [*FILES, *(new_file(m, "EXclass", 18) for m in METHODS)]:
        assert file in text, file
