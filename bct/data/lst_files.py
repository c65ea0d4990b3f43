"""Lists with the suffix .lst, of MXNet's im2rec and of insightface's face2rec2.

    im2rec       index <tab> label <tab> path                      label: 3 or 3.000000
    face2rec2    aligned <tab> path <tab> label [<tab> box, 4 <tab> landmarks, 10]

The second column tells them apart: a number is im2rec's label. Paths are relative to the folder in
a first line "# root: <folder>", which im2rec passes over, else to the list's folder or to train/ in
it, whichever has the first image. Absolute ones have to lie below the root. Images have the order
of the lines. Names are bytes, the file system's own.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.image_files import ImageFiles, as_text, bad_line, leads_out
from bct.data.image_lists import ROOT_LINE, find_root, folder_names
from bct.data.labels import check_labels
from bct.errors import BctError, printable
from bct.files import without_mark

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(rb"\d{1,18}")
_FACE_COLUMNS = (3, 7, 17)
IM2REC = "<index>, <label>, <path> with tabs between"
FACE2REC2 = "<1>, <path>, <label> with tabs between"


class Lst(NamedTuple):
    """root: as the first line says it, or None. keys: int64 (n,), im2rec's index; the line's number
    from 0 in face2rec2's lists. names: as written. labels: float64 (n,)."""

    root: bytes | None
    keys: np.ndarray
    names: list[bytes]
    labels: np.ndarray


def read_lst(path: Path) -> Lst:
    """Raises BctError for an empty list, a line that is not of the first line's dialect, an im2rec
    line of several labels and a face2rec2 line whose face is still to be aligned."""
    lines = without_mark(path, path.read_bytes()).split(b"\n")
    root = None
    if lines[0].startswith(ROOT_LINE):
        root, lines[0] = lines[0][len(ROOT_LINE) :].rstrip(b"\r"), b""
    keys, names, labels, read = [], [], [], None
    for number, line in enumerate(lines, 1):
        line = line.rstrip(b"\r")
        if not line.strip():
            continue
        fields = line.split(b"\t")
        if read is None:
            numbers = len(fields) > 2 and _NUMBER.fullmatch(fields[1].strip())
            read = _im2rec if numbers or len(fields) < 3 else _face2rec2
        key, name, label = read(path, number, line, fields)
        if not name or b"\0" in name:
            raise bad_line(path, number, line, "of an image", "mend the line")
        keys.append(len(keys) if key is None else key)
        names.append(name)
        labels.append(label)
    if not names:
        raise BctError(f"{path} names no image", "give a list with a line for each image")
    return Lst(root, np.array(keys, np.int64), names, np.array(labels, np.float64))


_Line = tuple[int | None, bytes, float]  # key, name, label


def _im2rec(path: Path, number: int, line: bytes, fields: list[bytes]) -> _Line:
    if len(fields) > 3 and all(_NUMBER.fullmatch(field.strip()) for field in fields[1:-1]):
        raise bad_line(path, number, line, IM2REC, "give each image one label")
    if len(fields) != 3 or not _WHOLE.fullmatch(fields[0].strip()) or not _number(fields[1]):
        raise bad_line(path, number, line, IM2REC, "mend the line, or write it with im2rec --list")
    return int(fields[0]), fields[2], float(fields[1])


def _face2rec2(path: Path, number: int, line: bytes, fields: list[bytes]) -> _Line:
    good = len(fields) in _FACE_COLUMNS and fields[0].strip() in (b"0", b"1")
    if not good or not _number(fields[2]):
        do = "mend the line; a box of 4 and landmarks of 10 numbers may follow"
        raise bad_line(path, number, line, FACE2REC2, do)
    if fields[0].strip() == b"0":
        do = "align the faces and write 1 there; tools/embed.py aligns them with --landmarks"
        raise bad_line(path, number, line, "of an aligned face", do)
    return None, fields[1], float(fields[2])


def _number(field: bytes) -> bool:
    return bool(_NUMBER.fullmatch(field.strip())) and np.isfinite(float(field))


def open_lst(path: str | Path, root: str | Path | None = None) -> ImageFiles:
    """The images of a list.

    Args:
        root: the folder that its paths are relative to; None: as above.

    Raises BctError like read_lst, for labels that are not 0..C-1, a root that is not there, and a
    path that leads out of it.
    """
    path = Path(path)
    return images_of(path, read_lst(path), root)


def images_of(path: Path, read: Lst, root: str | Path | None = None) -> ImageFiles:
    """The images of a list that has been read; see open_lst."""
    classes = check_labels(read.labels, str(path), lambda k: f"{path}: {as_text(read.names[k])!r}")
    folder = path.resolve().parent
    if root is not None:
        root = Path(root).absolute()
    elif read.root is not None:
        root = folder / os.fsdecode(read.root)
    elif read.names[0].startswith(b"/"):
        raise BctError(
            f"{path}: its paths are absolute",
            "write the folder that all of them lie in into a new first line: # root: <folder>",
        )
    else:
        root = find_root(path, folder, os.fsdecode(read.names[0]))
    if not os.path.isdir(root):
        raise BctError(
            f"{path}: its root {printable(str(root))} is not there",
            "mend its first line, # root: <folder of the images>",
        )
    start = os.path.join(os.fsencode(root), b"")
    names = [name.removeprefix(start).removeprefix(b"./") for name in read.names]
    if outside := [name for name in names if leads_out(name)]:
        raise BctError(
            f"{path} names {as_text(outside[0][:80])!r}, which does not lie below {root}",
            "write paths without .. that start in the folder of the line # root: <folder>",
        )
    labels = read.labels.astype(np.int64)
    return ImageFiles(path, root, names, labels, folder_names(names, labels), classes)
