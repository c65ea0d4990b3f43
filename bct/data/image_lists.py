"""Lists of images: text files with a line "<name> <label>" for each, labels 0..C-1.

Spaces in names are theirs. Names are relative to the folder in the list's first line, "# root:
<folder>", which may itself be relative to the list. Without that line, as in openBCT's lists, they
are relative to the list's folder or to `train/` in it, whichever has the first image. A root may
also be a part of CIFAR or a record file; names are then its images' numbers, see
bct/data/sets.py. Names are bytes, the file system's own, in any locale; they do not lead out of
the root. AdvBCT's lists of Market-1501, "<name> <label> <camera> 1", are read, too.

Class names come from the JSON manifest that tools/split_dataset.py writes beside a list, else from
the images' folders if each class has one of its own; else there are none.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.cifar import Cifar, is_cifar
from bct.data.image_files import ImageFiles, as_text, bad_line, leads_out
from bct.data.labels import check_labels
from bct.errors import BctError, printable
from bct.files import read_json, without_mark

ROOT_LINE = b"# root: "
_CAMERA = re.compile(rb"(\S.*?)\s+(\d{1,9})\s+\d{1,9}")  # <path> <label> <camera>


class Listed(NamedTuple):
    """What a list says: its root as written or None, names, and labels int64 (n,)."""

    root: bytes | None
    names: list[bytes]
    labels: np.ndarray


def list_classes(path: Path, listed: Listed) -> tuple[int, list[str] | None]:
    """How many classes a list has, and their names as its manifest has them. BctError for labels
    that are not 0..C-1 and for a manifest that belongs to another list."""
    root, names, labels = listed
    num_classes = check_labels(labels, str(path), lambda k: f"{path}: {as_text(names[k])!r}")
    side = path.with_suffix(".json")
    if root is None or not side.is_file():
        return num_classes, None
    return num_classes, _read_manifest(side, len(labels), num_classes)


def list_images(path: Path, listed: Listed) -> ImageFiles | Cifar:
    """The images of a list that has been read. BctError as list_classes, and for a root that is
    not there."""
    num_classes, class_names = list_classes(path, listed)
    root, names, labels = listed
    folder = path.resolve().parent
    root = folder / os.fsdecode(root) if root else find_root(path, folder, os.fsdecode(names[0]))
    if is_cifar(root):
        return Cifar(root).part(path, names, labels, class_names, num_classes)
    if not os.path.isdir(root):
        raise BctError(
            f"{path}: its root {printable(str(root))} is not there",
            "mend its first line: # root: <folder of the images>",
        )
    class_names = class_names or folder_names(names, labels)
    return ImageFiles(path, root, names, labels, class_names, num_classes)


def find_root(path: Path, folder: Path, first: str) -> Path:
    for root in (folder, folder / "train"):
        if os.path.exists(root / first):
            return root
    raise BctError(
        f"{path}: its first image {printable(first)} is neither in {folder} nor in train/ there",
        "write the folder of its images into a new first line: # root: <folder>",
    )


def read_list(path: Path) -> Listed:
    """Raises BctError for an empty list or a line that does not parse."""
    lines = without_mark(path, path.read_bytes()).split(b"\n")
    root = None
    if lines[0].startswith(ROOT_LINE):
        root, lines[0] = lines[0][len(ROOT_LINE) :].rstrip(b"\r"), b""
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        fields = line.rsplit(None, 1)  # at spaces and tabs; those at the end are left out
        if not fields:
            continue
        label = fields[-1]
        if len(fields) < 2 or not label.isdigit() or len(label) > 9 or b"\0" in line:
            raise bad_line(
                path, number, line, "<path> <label>", "mend the line; labels are 0 to C-1"
            )
        if leads_out(fields[0]):
            raise bad_line(
                path,
                number,
                line,
                "a file below the list's root",
                "write paths without .. that start in the folder of the line # root: <folder>",
            )
        names.append(fields[0])
        labels.append(int(label))
    if not names:
        raise BctError(f"{path} names no image", "give a list with a line for each image")
    with_cameras = [_CAMERA.fullmatch(name) for name in names] if set(labels) == {1} else [None]
    if all(with_cameras):  # all labels 1, none 0: no list of "<path> <label>" can be so
        names = [found[1] for found in with_cameras]
        labels = [int(found[2]) for found in with_cameras]
    return Listed(root, names, np.array(labels, np.int64))


def list_root(path: Path, root: Path) -> str:
    """What a list at `path` calls its root: relative if it is the list's folder or in it, so that
    both can be moved."""
    root, folder = (Path(os.path.realpath(one)) for one in (root, path))  # a link to itself, too
    folder = folder.parent
    return str(root.relative_to(folder) if root.is_relative_to(folder) else root)


def list_text(path: Path, root: Path, names: list[bytes], labels: np.ndarray) -> bytes:
    """A list as read_list reads it. BctError for a name that it would not read as it is."""
    lines = [ROOT_LINE + os.fsencode(list_root(path, root))]
    for name, label in zip(names, labels.tolist(), strict=True):
        lines.append(b"%s %d" % (name, label))
        if b"\n" in name or lines[-1].rsplit(None, 1)[0] != name:
            raise BctError(
                f"{as_text(name)!r} can't be in a list: it has a line break, or a space at its end",
                "rename the file",
            )
        if leads_out(name):
            raise BctError(f"{as_text(name)!r} does not lie below {root}", "give another root")
    if b"\n" in lines[0]:
        raise BctError(f"{str(root)!r} can't be in a list: it has a line break", "rename it")
    return b"\n".join(lines) + b"\n"


def folder_names(names: list[bytes], labels: np.ndarray) -> list[str] | None:
    """Names of the classes' folders if each class has one of its own."""
    folders: dict[int, bytes] = {}
    for name, label in zip(names, labels.tolist(), strict=True):
        folder = os.path.dirname(name).removesuffix(b"/images")
        if folders.setdefault(label, folder) != folder:
            return None
    if not all(folders.values()) or len(set(folders.values())) < len(folders):
        return None
    return [as_text(folders[label]) for label in sorted(folders)]


def _read_manifest(side: Path, images: int, classes: int) -> list[str] | None:
    """Class names. BctError for another list's."""
    about = read_json(side)
    about = about if isinstance(about, dict) else {}
    names = about.get("class_names")
    strings = names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))
    if (
        not strings
        or about.get("classes") != classes
        or (names is not None and len(names) != classes)
        or about.get("images") != images
    ):
        raise BctError(
            f"{side} does not belong to the list beside it, of {images} images in {classes} "
            "classes",
            "make both again with tools/split_dataset.py, or move the .json away",
        )
    return names
