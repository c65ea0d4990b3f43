"""Where an artefact that is missed may be instead: what to say to find it."""

import re
import shlex
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from bct.files import ROOT

_NAME = re.compile(
    r"(?P<name>.+?)_(?P<end>avg_feature|class_statistics|label|feature|"
    r"(?P<mask>credible_(?:ratio|entropy))_(?P<T>\d+)_feature)\.npy"
)
_SHARD = re.compile(r"(class|data)\d{1,3}$")
_SHOWN = 3


def elsewhere(path: Path) -> str | None:
    """What names the artefact that was looked for at `path`, if it or a kin of it is in a folder
    near: in another scenario's, another feature_save, of another T, shard or model. Else None.

    Tools and trainings name a folder in different ways: both are said.
    """
    parts = _NAME.fullmatch(path.name)
    if parts is None:
        return None
    if path.parent.name == "features":  # a model's own
        return _other_T(path, parts) or _other_sets(path, parts)
    for found in _copies(path):
        if found.parent.parent == path.parent.parent:
            return f"it is in {found.parent}: move it and its .json to {path.parent}"
        save = shlex.quote(str(found.parent.parent))
        return f"it is in {found.parent}: add --feature-save {save}, or feature_save={save}"
    return _other_T(path, parts) or _other_names(path, parts)


def _copies(path: Path) -> Iterator[Path]:
    """Files of that name below the same feature_save, then below other folders beside it, where
    Python was started, and in the project."""
    save, name = path.parent.parent, escape(path.name)
    yield from _sorted(save, f"*/{name}")
    for base in dict.fromkeys((save.parent, Path.cwd(), ROOT, ROOT / "work_dirs")):
        yield from _sorted(base, f"*/*/{name}")


def _other_T(path: Path, parts: re.Match) -> str | None:
    """A mask of the same rows, but of another share."""
    if parts["mask"] is None:
        return None
    pattern = f"{escape(parts['name'])}_{parts['mask']}_*_feature.npy"
    there = [_NAME.fullmatch(file.name) for file in _sorted(path.parent, pattern)]
    shares = [int(found["T"]) / 100 for found in there if found and found["name"] == parts["name"]]
    if not shares:
        return None
    return f"there is a mask of T = {shares[0]:g}: set T={shares[0]:g}, or make it with this T"


def _other_names(path: Path, parts: re.Match) -> str | None:
    """The same of another shard, or else of any model, in this feature_save."""
    ends = f"_{parts['end']}.npy"
    there = [
        found["name"]
        for file in _sorted(path.parent.parent, f"*/*{escape(ends)}")
        if (found := _NAME.fullmatch(file.name)) and found["end"] == parts["end"]
    ]
    alike = [name for name in there if _SHARD.sub("", name) == _SHARD.sub("", parts["name"])]
    if alike:
        return (
            f"there is {_listed(alike)}: name it with --SD, in a config with the scenario of that "
            "shard"
        )
    if there:
        return f"there is {_listed(there)}: name one with --SD, in a config with old_config"
    return None


def _other_sets(path: Path, parts: re.Match) -> str | None:
    """The same model's, of another training set."""
    ends = f"_{parts['end']}.npy"
    there = [
        found["name"]
        for file in _sorted(path.parent, f"*{escape(ends)}")
        if (found := _NAME.fullmatch(file.name)) and found["end"] == parts["end"]
    ]
    if not there:
        return None
    return f"there is that of the set {_listed(there)}: name that set, --rec or rec="


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sorted(base: Path, pattern: str) -> list[Path]:
    try:
        return sorted(base.glob(pattern))
    except OSError:
        return []
