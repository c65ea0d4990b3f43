"""Which class of the old model a new class is: from the classes' names, or from a file.

A map is int64 (C_new,): the old label of every new one, -1 where the old model has no such class.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError
from bct.files import read_json
from bct.safe.dicts import load_dict

_FORMS = 'give a JSON list of old labels (-1: none), {"new": old}, or a .npy of int64'


def new_to_old(new_names: list[str] | None, old_names: list[str] | None) -> np.ndarray:
    """The map between two lists of class names, in the order of their labels.

    Raises:
        BctError: names that are missing or occur twice, or two lists that share none.
    """
    for names, whose in ((new_names, "the new training set"), (old_names, "the old model")):
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise BctError(
                f"{whose} has no names for its classes, so they can't be matched",
                "set n2o_map to a file with the old label of every new one",
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BctError(
                f"{whose} has two classes called {twice!r}, so they can't be matched by name",
                "rename one, or set n2o_map to a file with the old label of every new one",
            )
    labels = {name: label for label, name in enumerate(old_names)}
    found = np.array([labels.get(name, -1) for name in new_names], np.int64)
    if (found < 0).all():
        raise BctError(
            f"no class of the new training set ({new_names[0]!r}, ...) is among those of the old "
            f"model ({old_names[0]!r}, ...)",
            "check both data sets, or set n2o_map to a file with the old label of every new one",
        )
    return found


def load_map(path: str | Path, num_new: int, num_old: int) -> np.ndarray:
    """Reads a map from a file and checks it.

    Args:
        path: a .json with a list of num_new old labels or an object {"new": old}; or a .npy with
            num_new integers or, as openBCT has it, a pickled dict {new: old}. In lists and arrays
            -1 stands for none, in dicts what is left out has none. Nothing in a pickle is executed.

    Raises:
        BctError: another format or length, labels outside the two sets of classes, or no class
            that has an old one.
    """
    path = Path(path)
    if path.suffix not in (".json", ".npy"):
        raise BctError(f"{path} is no label map: neither .json nor .npy", _FORMS)
    found = read_json(path) if path.suffix == ".json" else _read_npy(path)
    if isinstance(found, dict):
        pairs = [(_number(path, new), _number(path, old)) for new, old in found.items()]
    elif isinstance(found, list | np.ndarray):
        if len(found) != num_new:
            raise BctError(
                f"{path} maps {len(found)} classes, the new training set has {num_new}",
                "give one old label for each new class, -1 for none",
            )
        pairs = [(new, _number(path, old)) for new, old in enumerate(found)]
    else:
        raise BctError(f"{path} holds no label map", _FORMS)
    return _table(path, pairs, num_new, num_old)


def _table(path: Path, pairs: Iterable[tuple[int, int]], num_new: int, num_old: int) -> np.ndarray:
    table = np.full(num_new, -1, np.int64)
    for new, old in pairs:
        if not 0 <= new < num_new:
            raise BctError(
                f"{path} maps class {new}, the new training set has 0..{num_new - 1}",
                "make the map for this training set",
            )
        if not -1 <= old < num_old:
            raise BctError(
                f"{path} maps class {new} to {old}, the old model has 0..{num_old - 1}",
                "make the map for this old model",
            )
        table[new] = old
    if (table < 0).all():
        raise BctError(f"{path} maps no class to an old one", "check that it is the right file")
    return table


def _number(path: Path, value: Any) -> int:
    """An integer, or a string that is written as one; JSON has no other keys."""
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,8}", value):
        return int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise BctError(f"{path} holds no label map: a {type(value).__name__} is no label", _FORMS)


def _read_npy(path: Path) -> np.ndarray | dict:
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path, or make the file again")
    try:
        with open(path, "rb") as file:
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0
            )
            kind = read(file)[2]
            if kind.hasobject:
                return load_dict(file.read())
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises many kinds for damaged headers
        reason = " ".join(str(error).split())[:120]
        raise BctError(f"{path} can't be read as a label map ({reason})", _FORMS) from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise BctError(f"{path} holds {array.dtype} {array.shape}, not a label map", _FORMS)
    return array
