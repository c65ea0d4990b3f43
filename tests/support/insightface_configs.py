"""The configs that insightface ships for arcface_torch: their values, as a table.

Source: recognition/arcface_torch/configs of github.com/deepinsight/insightface, the 42 files of
2023 to 2026 beside base.py. What a column does not say has `BASE`'s value.
"""

from typing import Any

# base.py there, but for the settings of Weights & Biases
BASE = {
    "margin_list": (1.0, 0.5, 0.0), "network": "r50", "embedding_size": 512, "sample_rate": 1,
    "interclass_filtering_threshold": 0, "fp16": False, "batch_size": 128, "optimizer": "sgd",
    "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "verbose": 2000, "frequent": 10,
    "gradient_acc": 1, "seed": 2048, "num_workers": 2,
}  # fmt: skip
SETS = {  # folder, classes, images
    "ms1mv2": ("faces_emore", 85742, 5822653),
    "ms1mv3": ("ms1m-retinaface-t1", 93431, 5179510),
    "glint360k": ("glint360k", 360232, 17091657),
    "wf4m": ("WebFace4M", 205990, 4235242),
    "wf12m": ("WebFace12M", 617970, 12720066),
    "conflict": ("WebFace12M_Conflict", 1017970, 12720066),
    "flip": ("WebFace12M_FLIP40", 617970, 12720066),
    "wf42m": ("WebFace42M", 2059906, 42474557),
    "synthetic": ("synthetic", 300000, 100000),
}
ARC, COS = (1.0, 0.5, 0.0), (1.0, 0.0, 0.4)
FACES, NONE = ["lfw", "cfp_fp", "agedb_30"], []

# name: set, network, margin, share of PartialFC, weight decay, batch, lr, verbose, epochs,
# warm-up, verification sets, what else it sets
TABLE: dict[str, tuple] = {
    "3millions": ("synthetic", "mbf", COS, 0.1, 5e-4, 512, 0.1, 2000, 30, -1, NONE, {}),
    "glint360k_mbf": ("glint360k", "mbf", COS, 1.0, 1e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "glint360k_r100": ("glint360k", "r100", COS, 1.0, 1e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "glint360k_r50": ("glint360k", "r50", COS, 1.0, 1e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "ms1mv2_mbf": ("ms1mv2", "mbf", ARC, 1.0, 1e-4, 128, 0.1, 2000, 40, 0, FACES, {}),
    "ms1mv2_r100": ("ms1mv2", "r100", ARC, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "ms1mv2_r50": ("ms1mv2", "r50", ARC, 1.0, 1e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "ms1mv3_mbf": ("ms1mv3", "mbf", ARC, 1.0, 1e-4, 128, 0.1, 2000, 40, 0, FACES, {}),
    "ms1mv3_r100": ("ms1mv3", "r100", ARC, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "ms1mv3_r50": ("ms1mv3", "r50", ARC, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "ms1mv3_r50_onegpu": ("ms1mv3", "r50", ARC, 1.0, 5e-4, 128, 0.02, 2000, 20, 0, FACES, {}),
    "wf12m_conflict_r50": ("conflict", "r50", COS, 1.0, 5e-4, 128, 0.1, 2000, 20, 2, NONE, {}),
    "wf12m_conflict_r50_pfc03_filter04": (
        "conflict", "r50", COS, 0.3, 5e-4, 128, 0.1, 2000, 20, 2, NONE,
        {"interclass_filtering_threshold": 0.4},
    ),
    "wf12m_flip_pfc01_filter04_r50": (
        "flip", "r50", COS, 0.1, 5e-4, 128, 0.1, 2000, 20, 2, NONE,
        {"interclass_filtering_threshold": 0.4},
    ),
    "wf12m_flip_r50": ("flip", "r50", COS, 1.0, 5e-4, 128, 0.1, 2000, 20, 2, NONE, {}),
    "wf12m_mbf": ("wf12m", "mbf", COS, 1.0, 1e-4, 128, 0.1, 2000, 20, 0, NONE, {}),
    "wf12m_pfc02_r100": ("wf12m", "r100", COS, 0.2, 5e-4, 128, 0.1, 2000, 20, 0, NONE, {}),
    "wf12m_r100": ("wf12m", "r100", COS, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, NONE, {}),
    "wf12m_r50": ("wf12m", "r50", COS, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, NONE, {}),
    "wf42m_pfc0008_32gpu_r100": (
        "wf42m", "r100", COS, 0, 5e-4, 512, 0.4, 2000, 20, 2, FACES, {},
    ),
    "wf42m_pfc02_16gpus_mbf_bs8k": (
        "wf42m", "mbf", COS, 0.2, 1e-4, 512, 0.4, 10000, 20, 2, NONE, {},
    ),
    "wf42m_pfc02_16gpus_r100": ("wf42m", "r100", COS, 0.2, 5e-4, 256, 0.3, 2000, 20, 1, FACES, {}),
    "wf42m_pfc02_16gpus_r50_bs8k": (
        "wf42m", "r50", COS, 0.2, 5e-4, 512, 0.6, 10000, 20, 4, FACES, {},
    ),
    "wf42m_pfc02_32gpus_r50_bs4k": (
        "wf42m", "r50", COS, 0.2, 5e-4, 128, 0.4, 10000, 20, 2, FACES, {},
    ),
    "wf42m_pfc02_8gpus_r50_bs4k": (
        "wf42m", "r50", COS, 0.2, 5e-4, 512, 0.4, 10000, 20, 2, FACES, {},
    ),
    "wf42m_pfc02_r100": ("wf42m", "r100", COS, 0.2, 5e-4, 128, 0.1, 10000, 20, 0, FACES, {}),
    "wf42m_pfc02_r100_16gpus": (
        "wf42m", "r100", COS, 0.2, 5e-4, 128, 0.2, 10000, 20, 2, FACES, {},
    ),
    "wf42m_pfc02_r100_32gpus": (
        "wf42m", "r100", COS, 0.2, 5e-4, 128, 0.4, 10000, 20, 2, FACES, {},
    ),
    "wf42m_pfc02_vit_h": (
        "wf42m", "vit_h", COS, 0.5, 0.1, 768, 0.001, 2000, 16, 2, NONE, {"optimizer": "adamw"},
    ),
    "wf42m_pfc03_32gpu_r100": ("wf42m", "r100", COS, 0.3, 5e-4, 128, 0.4, 2000, 20, 2, FACES, {}),
    "wf42m_pfc03_32gpu_r18": ("wf42m", "r18", COS, 0.3, 5e-4, 128, 0.4, 2000, 20, 2, FACES, {}),
    "wf42m_pfc03_32gpu_r200": ("wf42m", "r200", COS, 0.3, 5e-4, 128, 0.4, 2000, 20, 2, FACES, {}),
    "wf42m_pfc03_32gpu_r50": ("wf42m", "r50", COS, 0.3, 5e-4, 128, 0.4, 2000, 20, 2, FACES, {}),
    "wf42m_pfc03_40epoch_64gpu_vit_b": (
        "wf42m", "vit_b_dp005_mask_005", COS, 0.3, 0.1, 384, 0.001, 2000, 40, 4, NONE,
        {"optimizer": "adamw"},
    ),
    "wf42m_pfc03_40epoch_64gpu_vit_l": (
        "wf42m", "vit_l_dp005_mask_005", COS, 0.3, 0.1, 384, 0.001, 2000, 40, 4, NONE,
        {"optimizer": "adamw"},
    ),
    "wf42m_pfc03_40epoch_64gpu_vit_s": (
        "wf42m", "vit_s_dp005_mask_0", COS, 0.3, 0.1, 384, 0.001, 2000, 40, 4, NONE,
        {"optimizer": "adamw"},
    ),
    "wf42m_pfc03_40epoch_64gpu_vit_t": (
        "wf42m", "vit_t_dp005_mask0", COS, 0.3, 0.1, 384, 0.001, 2000, 40, 4, NONE,
        {"optimizer": "adamw"},
    ),
    "wf42m_pfc03_40epoch_8gpu_vit_b": (
        "wf42m", "vit_b_dp005_mask_005", COS, 0.3, 0.1, 256, 0.001, 2000, 40, 4, NONE,
        {"optimizer": "adamw", "gradient_acc": 12},
    ),
    "wf42m_pfc03_40epoch_8gpu_vit_t": (
        "wf42m", "vit_t_dp005_mask0", COS, 0.3, 0.1, 512, 0.001, 2000, 40, 4, NONE,
        {"optimizer": "adamw"},
    ),
    "wf4m_mbf": ("wf4m", "mbf", COS, 1.0, 1e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "wf4m_r100": ("wf4m", "r100", COS, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
    "wf4m_r50": ("wf4m", "r50", COS, 1.0, 5e-4, 128, 0.1, 2000, 20, 0, FACES, {}),
}  # fmt: skip
NO_EFFECT = {"dali": False, "save_all_states": False}  # keys that have none here
_COLUMNS = ("network", "margin_list", "sample_rate", "weight_decay", "batch_size", "lr", "verbose")
_COLUMNS += ("num_epoch", "warmup_epoch", "val_targets")


def values(name: str) -> dict[str, Any]:
    """What a run by this config has there, data and all."""
    data, *row, more = TABLE[name]
    folder, classes, images = SETS[data]
    said = {"rec": folder, "num_classes": classes, "num_image": images, "fp16": True}
    return BASE | said | dict(zip(_COLUMNS, row, strict=True)) | more


def as_published(name: str) -> dict[str, Any]:
    """The keys and values that a file of theirs has: what base.py says is not all repeated."""
    chosen = values(name)
    always = {"margin_list", "network", "embedding_size", "sample_rate", "weight_decay", "lr"}
    always |= {"batch_size", "momentum"}
    left_out = {k for k, v in BASE.items() if chosen[k] == v and k not in always}
    kept = {key: value for key, value in chosen.items() if key not in left_out}
    rec = chosen["rec"] if chosen["rec"] == "synthetic" else f"/train_tmp/{chosen['rec']}"
    return kept | {"rec": rec, "resume": False, "output": None, "dali": False}


def learning_rate(name: str, micro: int, total: int, warmup: int) -> float:
    """The rate they use for micro-batch `micro` (0-based) of `total`, for which they ask their
    schedule after each micro-batch: so the first one has the base's, whatever the warm-up."""
    lr, warmup = values(name)["lr"], max(warmup, 0)
    if micro == 0:
        return lr
    if micro <= warmup:
        return lr * micro / warmup
    return lr * (total - micro) / (total - warmup)
