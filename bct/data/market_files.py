"""Market-1501's files, and those of sets that are named in the same way.

    query/                  who is looked for
    bounding_box_test/      where; 0000 are people that nobody looks for, -1 are no people
    bounding_box_train/     other people, to learn from

A name begins with the person and the camera: 0002_c1s1_000451_03.jpg. In place of the folders there
may be lists of their images, <set>_query.csv, <set>_test.csv and <set>_train.csv with lines
0002,bounding_box_train/0002_c1s1_000451_03.jpg.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.image_files import ImageFiles, as_text, bad_line, entries
from bct.distributed import say
from bct.errors import BctError
from bct.files import without_mark
from bct.safe.tensor_files import shown

FOLDERS = {"query": "query", "test": "bounding_box_test", "train": "bounding_box_train"}
NOBODY, JUNK = 0, -1  # people that are none to look for; boxes that hold nobody
_NAME = re.compile(rb"(-1|\d{1,9})_(?:c([1-9]\d{0,3})(?!\d))?")


class People(NamedTuple):
    """Images of people: names below the set's folder, whose each is and by which camera it was
    taken, int64 (n,). path: the folder or the list."""

    path: Path
    names: list[bytes]
    people: np.ndarray
    cameras: np.ndarray


def read_people(root: str | Path, part: str) -> People:
    """A part of a set, "query", "test" or "train": its list if there is one, else its folder, in
    the order of the names.

    Raises BctError: neither; a name that says no person or no camera, or another person than its
    line; an image that a list has twice.
    """
    root = Path(root)
    listed = sorted(root.glob(f"*{part}.csv"))
    if len(listed) > 1:
        raise BctError(
            f"{root} has {len(listed)} lists of its part {part}: "
            + ", ".join(path.name for path in listed[:5]),
            "leave one of them there",
        )
    if listed:
        path, (people, names) = listed[0], _read_list(listed[0])
    elif (root / FOLDERS[part]).is_dir():
        path, people = root / FOLDERS[part], None
        names = entries(os.fsencode(root), FOLDERS[part].encode())[0]
    else:
        raise BctError(
            f"{root} has neither {FOLDERS[part]}/ nor a list *{part}.csv",
            _instead(root),
        )
    if not names:
        raise BctError(f"{path} has no image", "copy the set again")
    found = _parsed(path, names)
    if people is not None and (found.people != people).any():
        row = int(np.argmax(found.people != people))
        raise BctError(
            f"{path}: {as_text(names[row])} is of {found.people[row]}, its line says {people[row]}",
            "mend the list",
        )
    return found


def _instead(root: Path) -> str:
    """What to do where a folder is not Market-1501's, by what else it is."""
    near = [root.parent, *sorted(path for path in root.glob("*") if path.is_dir())]
    for folder in near:
        if (folder / FOLDERS["query"]).is_dir():
            return f"give the folder that has query/ and bounding_box_test/: {folder}"
    if (root / "index.csv").is_file() or any(root.glob("gnd_*.pkl")):
        return f"these are landmarks: python eval/landmarks.py {root} --data NAME"
    return "give the folder of Market-1501, which has query/ and bounding_box_test/"


def _read_list(path: Path) -> tuple[np.ndarray, list[bytes]]:
    people, names = [], []
    for number, line in enumerate(without_mark(path, path.read_bytes()).splitlines(), 1):
        if not line.strip():
            continue
        person, comma, name = line.strip().partition(b",")
        if not comma or not name or not re.fullmatch(rb"-?\d{1,9}", person):
            raise bad_line(path, number, line, "<person>,<path>", "mend the line")
        people.append(int(person))
        names.append(name)
    if len(set(names)) < len(names):
        before: set[bytes] = set()
        twice = next(name for name in names if name in before or before.add(name))
        raise BctError(f"{path} has {shown(as_text(twice), 80)} twice", "name each image once")
    return np.array(people, np.int64), names


def _parsed(path: Path, names: list[bytes]) -> People:
    people, cameras = np.empty((2, len(names)), np.int64)
    strange, blind = [], []
    for row, name in enumerate(names):
        found = _NAME.match(os.path.basename(name))
        if found is None:
            strange.append(name)
        elif found[2] is None:
            blind.append(name)
        else:
            people[row], cameras[row] = int(found[1]), int(found[2])
    for wrong, what in ((strange, "are none of Market-1501"), (blind, "do not say the camera")):
        if wrong:
            raise BctError(
                f"{path}: {len(wrong):,} of {len(names):,} names {what}, first "
                f"{shown(as_text(wrong[0]), 80)}",
                "name the files like 0002_c1s1_000451_03.jpg: person, camera, whatever else",
            )
    return People(path, names, people, cameras)


def is_market(root: Path) -> bool:
    """Whether a folder is that of a set, or of its images to learn from."""
    return (root / FOLDERS["train"]).is_dir() or (root.name == FOLDERS["train"] and root.is_dir())


def open_market_train(root: str | Path) -> ImageFiles:
    """The images to learn from. Labels 0..C-1 follow the sorted numbers of the people, which are
    their names, 0002; boxes of nobody (0000, -1) are left out.

    Raises BctError like read_people, and for a set without people.
    """
    root = Path(root)
    root = root.parent if root.name == FOLDERS["train"] else root
    found = read_people(root, "train")
    kept = np.flatnonzero(found.people > NOBODY)
    if not len(kept):
        raise BctError(f"{found.path} has nobody to learn from", "copy the set again")
    if len(kept) < len(found.names):
        left_out = len(found.names) - len(kept)
        say(f"{found.path}: {left_out:,} images show nobody (0000 or -1) and are left out")
    people, labels = np.unique(found.people[kept], return_inverse=True)
    names = [found.names[row] for row in kept.tolist()]
    return ImageFiles(found.path, root, names, labels, [f"{person:04d}" for person in people])
