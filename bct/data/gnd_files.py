"""Ground truth of Revisited Oxford and Paris (Radenovic et al., CVPR 2018), and of any set that is
annotated in the same way: gnd_<name>.pkl.

    {"imlist": [G names], "qimlist": [Q names], "gnd": [Q times {"bbx": [x1, y1, x2, y2],
        "easy": [rows of imlist], "hard": [...], "junk": [...]}]}

Names have no suffix. The pickle is read by bct/safe/dicts.py: nothing in it is executed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bct.data.image_files import IMAGE_SUFFIXES, as_text
from bct.errors import BctError
from bct.safe.dicts import load_dict
from bct.safe.tensor_files import shown

GRADES = ("easy", "hard", "junk")
MOST_BYTES = 1 << 25  # a hundred times the largest published one
_ALIASES = {"roxford5k": "roxford", "rparis6k": "rparis"}
_AGAIN = "copy the file again: https://github.com/filipradenovic/revisitop"
_PLAIN = "pickle dicts and lists of numbers and strings, no list in two places; or " + _AGAIN


class Gnd(NamedTuple):
    """What a ground truth file says.

    gallery, queries: names of the images' files. boxes: float64 (Q, 4), what of a query is asked
    for; None where it has none. graded: "easy", "hard" and "junk", for each query the gallery rows,
    int64; none is in two of them.
    """

    gallery: list[bytes]
    queries: list[bytes]
    boxes: np.ndarray | None
    graded: dict[str, list[np.ndarray]]


def find_gnd(root: str | Path, name: str) -> Path:
    """The file: `root` itself, or gnd_<name>.pkl or <name>.pkl in it, in its folder of that name or
    in annotation/; without a name the only gnd_*.pkl in it. BctError if it is in none of these."""
    root = Path(root)
    if root.is_file():
        return root
    if Path(name).is_file():
        return Path(name)
    name = name.removeprefix("gnd_").removesuffix(".pkl")
    short = _ALIASES.get(name, name)
    for folder in (".", name, short, "annotation", f"annotation/{short}", "annotation/roxford"):
        for file in (f"gnd_{name}.pkl", f"{name}.pkl", f"gnd_{short}.pkl", f"{short}.pkl"):
            if (root / folder / file).is_file():
                return Path(root / folder / file)
    there = sorted(root.glob("gnd_*.pkl"))
    if not name and len(there) == 1:
        return there[0]
    raise BctError(
        f"there is no gnd_{name}.pkl in {root}, in {name}/ or in annotation/ there",
        _instead(root, name, [path.name for path in there]),
    )


def _instead(root: Path, name: str, others: list[str]) -> str:
    """What to do where a folder lacks a ground truth, by what else it is."""
    if others:
        return f"give the folder that has it; {root} has {', '.join(others)}"
    near = [root.parent, *sorted(path for path in root.glob("*") if path.is_dir())]
    for folder in near:
        if (folder / f"gnd_{name}.pkl").is_file():
            return f"give the folder that has it: {folder}"
    if (root / "bounding_box_test").is_dir():
        return f"this is Market-1501: python eval/reid.py {root}"
    if (root / "index.csv").is_file():
        return "this is GLDv2: --data gldv2"
    return "give the folder that has it"


def find_images(root: str | Path, gnd: Path, name: str, first: bytes) -> Path | None:
    """The folder that has an image: jpg/ beside the ground truth, jpg/ in root or in its folder of
    that name, or root itself; None if it is in none of these."""
    root = Path(root) if Path(root).is_dir() else gnd.parent
    short = _ALIASES.get(name, name)
    folders = [gnd.parent / "jpg", gnd.parent / name / "jpg", root / "jpg"]
    folders += [root / name / "jpg", root / short / "jpg", root, root / name]
    folders += [root.parent / "jpg"] if gnd.parent.name == name else []
    for folder in folders:
        if (folder / as_text(first)).is_file():
            return folder
    return next((folder for folder in folders if folder.name == "jpg" and folder.is_dir()), None)


def read_gnd(path: str | Path) -> Gnd:
    """Reads a ground truth file.

    Raises BctError: no such pickle of plain values; rows outside of imlist; an image that a query
    has twice, in one list or in two; boxes that are none, or that only some queries have.
    """
    path = Path(path)
    said = _read(path)
    gallery = _names(path, said, "imlist")
    queries = _names(path, said, "qimlist")
    entries = said.get("gnd")
    if not isinstance(entries, list) or len(entries) != len(queries):
        number = len(entries) if isinstance(entries, list) else "no"
        raise BctError(f"{path} has {number} entries gnd for {len(queries)} queries", _AGAIN)
    graded: dict[str, list[np.ndarray]] = {grade: [] for grade in GRADES}
    boxes, total = [], 0
    for k, entry in enumerate(entries):
        whose = f"{path}: query {k} ({shown(as_text(queries[k]), 60)})"
        if not isinstance(entry, dict):
            raise BctError(f"{whose} has no lists easy, hard and junk", _AGAIN)
        for grade in GRADES:
            graded[grade].append(_rows(whose, entry, grade, len(gallery)))
            total += len(graded[grade][k])
        if total > path.stat().st_size:  # one array for many queries
            raise BctError(f"{path} names more images than it has room for", _AGAIN)
        _refuse_twice(whose, [graded[grade][k] for grade in GRADES], gallery)
        boxes.append(_box(whose, entry.get("bbx")))
    lacking = [k for k, box in enumerate(boxes) if box is None]
    if lacking and len(lacking) < len(boxes):
        raise BctError(
            f"{path}: {len(lacking)} of {len(boxes)} queries have no bbx, query {lacking[0]} first",
            "give all of them one, or none",
        )
    return Gnd(gallery, queries, None if lacking else np.array(boxes), graded)


def _read(path: Path) -> dict[int | str, Any]:
    if not path.is_file():
        raise BctError(f"there is no ground truth file {path}", "check the path")
    if path.stat().st_size > MOST_BYTES:
        raise BctError(f"{path} has {path.stat().st_size:,} bytes: it is no ground truth", _AGAIN)
    try:
        return load_dict(path.read_bytes())
    except ValueError as error:
        raise BctError(f"{path} is no pickle of plain lists ({error})", _PLAIN) from None


def _names(path: Path, said: dict[int | str, Any], key: str) -> list[bytes]:
    """Names of files: those without a suffix of an image are JPEGs."""
    names = said.get(key)
    if not isinstance(names, list) or not names:
        raise BctError(f"{path} has no {key}, a list of names", _AGAIN)
    out = []
    for k, name in enumerate(names):
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogateescape") if _encodes(name) else None
        if not isinstance(name, bytes) or not name or b"\0" in name or b"\n" in name:
            raise BctError(f"{path}: entry {k} of {key} is no name of an image", _AGAIN)
        suffix = Path(as_text(name)).suffix.lower()
        out.append(name if suffix in IMAGE_SUFFIXES else name + b".jpg")
    if len(set(out)) < len(out):
        before: set[bytes] = set()
        twice = next(name for name in out if name in before or before.add(name))
        raise BctError(f"{path}: {key} has {shown(as_text(twice), 60)} twice", _AGAIN)
    return out


def _encodes(name: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDC7F or 0xDD00 <= ord(c) <= 0xDFFF for c in name)


def _rows(whose: str, entry: dict[int | str, Any], grade: str, gallery: int) -> np.ndarray:
    said = entry.get(grade)
    plain = isinstance(said, list) and all(type(row) is int for row in said)
    if isinstance(said, np.ndarray) and said.ndim == 1 and said.dtype.kind in "iu":
        said, plain = said.tolist(), True
    if not plain:
        raise BctError(f"{whose} has no list {grade} of rows of imlist", _AGAIN)
    outside = next((row for row in said if not 0 <= row < gallery), None)
    if outside is not None:
        raise BctError(
            f"{whose}: its {grade} image {shown(str(outside), 30)} lies outside of imlist, which "
            f"has {gallery:,}",
            "count from 0; or " + _AGAIN,
        )
    return np.array(said, np.int64)


def _refuse_twice(whose: str, lists: Sequence[np.ndarray], gallery: Sequence[bytes]) -> None:
    rows = np.concatenate(lists)
    found, counts = np.unique(rows, return_counts=True)
    twice = found[counts > 1]
    if len(twice):
        where = [g for g, rows in zip(GRADES, lists, strict=True) if twice[0] in rows]
        raise BctError(
            f"{whose}: image {twice[0]} ({shown(as_text(gallery[twice[0]]), 60)}) is in "
            f"{' and in '.join(where)}" + (" twice" if len(where) == 1 else ""),
            "an image is easy, hard or junk: mend the lists",
        )


def _box(whose: str, said: Any) -> list[float] | None:
    if said is None:
        return None
    said = said.tolist() if isinstance(said, np.ndarray) else said
    fits = isinstance(said, list | tuple) and len(said) == 4
    fits = fits and all(type(side) in (int, float) and abs(side) < 1e9 for side in said)
    if not fits or not (said[0] < said[2] and said[1] < said[3]):  # NaN is not, either
        raise BctError(f"{whose}: its bbx is no box", "give left, top, right and bottom, in pixels")
    return [float(side) for side in said]
