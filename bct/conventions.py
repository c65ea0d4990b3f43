"""Whose config a file is, and what that means: MixBCT's and insightface's files keep their meaning.

    mixbct       a file name or a key that MixBCT has published
    insightface  another file, whose keys all are insightface's
    bct          any other: the defaults of configs/base.py

What a file leaves unsaid has its system's default; MixBCT's keys become ours, and its paths start
at the folder above configs/, as they do there. `convention` in the file or on the command line
decides otherwise.
"""

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from bct.errors import BctError
from bct.keys import shown
from bct.scenarios import SCENARIOS

# where a system's default is not that of configs/base.py
DEFAULTS: dict[str, dict[str, Any]] = {
    "bct": {},
    "mixbct": {"lr_power": 2.0, "seed": 666, "frequent": 20},
    "insightface": {
        "lr_power": 1.0,
        "seed": 2048,
        "frequent": 10,
        "verbose": 2000,
        "fp16": False,
        "wandb_log_all": True,
    },
}

# what its configs have had, from 2021 on
INSIGHTFACE_KEYS = {
    *("margin_list", "network", "resume", "save_all_states", "output", "embedding_size", "loss"),
    *("sample_rate", "interclass_filtering_threshold", "fp16", "batch_size", "optimizer", "lr"),
    *("momentum", "weight_decay", "verbose", "frequent", "dali", "dali_aug", "gradient_acc"),
    *("seed", "num_workers", "rec", "num_classes", "num_image", "num_epoch", "warmup_epoch"),
    *("val_targets", "decay_epoch", "using_wandb", "wandb_key", "wandb_entity", "wandb_project"),
    *("wandb_log_all", "wandb_resume", "suffix_run_name", "save_artifacts", "notes"),
}

_ALONE = re.compile(r"f\d+_r\d+_(?P<loss>arc|softmax)_(class|data)\d+$")
_UPGRADE = re.compile(
    r"(?P<scenario>(OP|EX)(?P<kind>class|data))_ms1mv3_(?P<old>r\d+)_to_r\d+_(?P<method>\w+)_"
    r"(?P<loss>arc|softmax)_to_arc_f(?P<width>\d+)$"
)
_ARTEFACTS = ("old_embedding", "credible_old_feature", "old_prototype", "old_embedding_label")
MIXBCT_KEYS = (*_ARTEFACTS, "old_model_path", "center_radius")
_PUBLISHED_PERCENT = 30  # of the classes or images, for every old model
_RADII = re.compile(r"(?P<sd>.+)_meta_radius_centernorm_for_AdvBCT\.npy$")


def convention_of(file: Path, given: Mapping[str, Any], known: Container[str]) -> tuple[str, str]:
    """(convention, why) of a config file that does not say it.

    Args:
        given: what the file sets. known: every key that there is here, the method's, too.
    """
    if _ALONE.fullmatch(file.stem) or _UPGRADE.fullmatch(file.stem):
        return "mixbct", "its file name is one of MixBCT's"
    theirs = [key for key in MIXBCT_KEYS if given.get(key) is not None]
    neither = {*INSIGHTFACE_KEYS, "convention"}
    ours = [key for key in given if key in known and key not in neither]
    if theirs:
        ours = [key for key in ours if key not in (*theirs, *_METHOD_KEYS)]
    if ours:
        return "bct", f"it sets {ours[0]}"
    if theirs:
        return "mixbct", f"it sets MixBCT's {theirs[0]}"
    return "insightface", "it sets no key but insightface's"


# what its methods' configs set beside the artefacts
_METHOD_KEYS = (
    *("mix_ratio", "T", "alpha", "beta", "queue_size", "loss_weight", "threshold", "rec_val"),
)


def defaults_of(convention: str, name: str) -> dict[str, Any]:
    """The defaults that differ from configs/base.py's, for a config of this name."""
    chosen = dict(DEFAULTS[convention])
    alone = _ALONE.fullmatch(name)
    if convention == "mixbct" and alone and alone["loss"] == "softmax":
        chosen["head"] = "softmax"
    return chosen


def in_our_words(
    convention: str, file: Path, given: Mapping[str, Any], known: Container[str]
) -> dict[str, Any]:
    """What a file sets, with the keys of MixBCT that the method does not have replaced by ours.

    Raises BctError for one that can't be, naming the key that replaces it.
    """
    out = dict(given)
    if convention != "mixbct":
        return out
    if "old_model_path" in out and "old_model_path" not in known:
        out.setdefault("old_config", _old_config(file, str(out.pop("old_model_path"))))
    if "center_radius" in out and "center_radius" not in known:
        out.setdefault("class_statistics", _class_statistics(file, str(out.pop("center_radius"))))
    for key in ("old_prototype", "old_embedding_label"):  # they follow from scenario and old_config
        if key not in known:
            out.pop(key, None)
    upgrade = _UPGRADE.fullmatch(file.stem)
    if upgrade:
        old = f"f{upgrade['width']}_{upgrade['old']}_{upgrade['loss']}_{upgrade['kind']}"
        out.setdefault("old_config", f"{old}{_PUBLISHED_PERCENT}")
        out.setdefault("scenario", upgrade["scenario"])
    folders = [Path(str(given[key])).parent.name for key in MIXBCT_KEYS if given.get(key)]
    scenarios = [folder for folder in folders if folder in SCENARIOS]
    if scenarios:
        out.setdefault("scenario", scenarios[0])
    for key in ("rec", "rec_val", "class_statistics", *_ARTEFACTS):
        value = out.get(key)
        if isinstance(value, str) and value.startswith("../"):
            out[key] = str((file.parent.parent / value).resolve())
    return out


def _old_config(file: Path, old_model_path: str) -> str:
    path = Path(old_model_path)
    if path.name != "model.pt" or not path.parent.name:
        raise BctError(
            f"{file}: old_model_path = {shown(old_model_path)} is no work_dirs/<config>/model.pt",
            "set old_config in its place, to the name of the old model's config",
        )
    return path.parent.name


def _class_statistics(file: Path, center_radius: str) -> str:
    path = Path(center_radius)
    radii = _RADII.fullmatch(path.name)
    if not radii:
        raise BctError(
            f"{file}: center_radius = {shown(center_radius)} is not named as AdvBCT names it",
            "set class_statistics in its place, to a file of tools/class_statistics.py",
        )
    return str(path.with_name(f"{radii['sd']}_class_statistics.npy"))


def like_insightface(cfg: Mapping[str, Any]) -> bool:
    """Whether a run copies the quirks of insightface's training, too."""
    return cfg.get("convention") == "insightface" and cfg["parity"] == "published"
