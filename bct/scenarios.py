"""The four upgrade scenarios of the MixBCT benchmark, stated once: which part of a data set the old
and the new model see, and how shards and artefacts are named after that.

    scenario   old model    new model          relation
    OPclass    class30      class70            disjoint identities
    OPdata     data30       data70             same identities, disjoint images
    EXclass    class30      everything         more identities
    EXdata     data30       everything         more images of the same identities

30 stands for any percentage p; the open scenarios (OP) pair p with 100 - p. "SD" is the name of the
old model's artefacts: its config's name with the shard replaced by the one the features are from,
e.g. f128_r18_softmax_class70. Source: MixBCT reference, README and configs.
"""

import re
from pathlib import Path

from bct.errors import BctError

SCENARIOS = ("OPclass", "OPdata", "EXclass", "EXdata")
LISTS = (".txt", ".lst", ".csv")  # suffixes of image lists
MARKET = "bounding_box_train"  # a folder of images itself: its parts are beside it, under its name
_SHARD = re.compile(r"(class|data)(\d{1,3})$")


def split_name(name: str) -> tuple[str, str, int]:
    """f128_r18_softmax_class30 -> ("f128_r18_softmax_", "class", 30); BctError if it can't."""
    match = _SHARD.search(name)
    if not match or not 1 <= int(match[2]) <= 100:
        raise BctError(
            f"{name!r} does not end in a shard such as class30 or data70",
            "name old-model configs and artefacts after their shard: f128_r18_softmax_class30",
        )
    return name[: match.start()], match[1], int(match[2])


def new_shard(scenario: str, old_config: str) -> str:
    """The new model's shard, e.g. ("OPclass", "..._class30") -> "class70". BctError on mismatch,
    and for halves in an open scenario: both would be called class50."""
    _, kind, percent = split_name(old_config)
    if scenario[2:] != kind:
        raise BctError(
            f"scenario {scenario} does not fit the old config {old_config} (a {kind} shard)",
            f"use OP{kind} or EX{kind}, or another old_config",
        )
    if scenario.startswith("OP") and percent == 50:
        raise BctError(
            f"scenario {scenario} can't tell the halves of {old_config} apart by their names",
            f"set `shard` and `rec` yourself, or use EX{kind} or another percentage",
        )
    return f"{kind}{100 - percent if scenario.startswith('OP') else 100}"


def artefact_name(old_config: str, shard: str) -> str:
    """SD: ("f128_r18_softmax_class30", "class70") -> "f128_r18_softmax_class70"."""
    return split_name(old_config)[0] + shard


def scenario_of(sd: str) -> str:
    """The scenario whose artefacts are called `sd`: the folder under feature_save/."""
    _, kind, percent = split_name(sd)
    return f"{'EX' if percent == 100 else 'OP'}{kind}"


def shard_stem(rec: str | Path) -> Path:
    """Where the parts of a data set are, but for their "_part_70_class.rec" or ".txt": beside it,
    (dir, dir/train.rec, dir/train.txt or dir/train.lst) -> dir/train."""
    path = Path(rec)
    if path.is_dir() and path.name != MARKET:
        return path / "train"
    return path.with_suffix("") if path.suffix in (".rec", *LISTS) else path


def set_name(rec: str | Path) -> str:
    """What artefacts of this training set are called in a model's folder: lfw or lfw/train.rec ->
    "lfw_train"."""
    stem = shard_stem(Path(rec).absolute())
    return f"{stem.parent.name}_{stem.name}"


def shard_file(rec: str | Path, shard: str) -> Path:
    """The record file or image list of a shard beside the whole set: (dir or dir/train.rec,
    "class70") -> dir/train_part_70_class.rec, or .txt if the set is a list or has no such .rec.
    class100 and data100 are the whole set itself, and a path that names the shard's file already
    stays as it is."""
    _, kind, percent = split_name(shard)
    path = Path(rec)
    suffix = f"_part_{percent}_{kind}"
    if percent == 100 or path.stem.endswith(suffix):
        return path
    stem = shard_stem(path)
    record, images = (stem.with_name(f"{stem.name}{suffix}.{end}") for end in ("rec", "txt"))
    listed = path.suffix in LISTS or (images.is_file() and not record.is_file())
    return images if listed else record
