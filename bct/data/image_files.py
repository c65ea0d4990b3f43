"""Sets of images of any size: folders of classes, and image lists.

A list is a text file with a line "<name> <label>" for each image, labels 0..K-1; spaces in names
are theirs. Names are relative to the folder in the list's first line, "# root: <folder>", which
may itself be relative to the list. Without that line, as in openBCT's lists, they are relative to
the list's folder or to `train/` in it, whichever has the first image. A root may also be a part of
CIFAR; names are then its image numbers. Names are bytes, the file system's own, in any locale.

Class names come from the JSON manifest that tools/split_dataset.py writes beside a list, else from
the images' folders if each class has one of its own; else there are none.
"""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.cifar import Cifar, is_cifar
from bct.data.image_set import ImageSet
from bct.data.images import decode
from bct.errors import BctError
from bct.files import read_json, sha256

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_HEAD = b"# root: "


class ImageFiles(ImageSet):
    """Image files below a folder.

    Args:
        path: what was opened: the folder, or the list.
        root: the folder that names are relative to.
        names: of the images.
        labels: of the images, below the number of classes.
        class_names: one per label, or None.
        num_classes: if there are no class_names.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        names: list[bytes],
        labels: np.ndarray | list[int],
        class_names: list[str] | None,
        num_classes: int | None = None,
    ):
        self.path, self.root = path, root
        self.names = np.array(names, bytes)  # one array, which forked workers share
        self.labels = np.array(labels, np.int64)
        self.class_names = class_names
        self.num_classes = len(class_names) if class_names is not None else num_classes

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def payload(self, index: int) -> tuple[bytes, int]:
        """Encoded image and label. BctError if the file can't be read."""
        try:
            with open(self.file(index), "rb") as file:
                return file.read(), int(self.labels[index])
        except OSError as error:
            raise self._unreadable(index, error) from None

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), of the file's own size. BctError if broken."""
        return self._decoded(index, None)

    def load(self, index: int, out: np.ndarray) -> int:
        """Decodes an image of exactly out's size into it; its label. BctError if broken."""
        self._decoded(index, out)
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        return self.file(index)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a name, a file's size or a label does."""
        return sha256(*self._sizes(), self.labels.tobytes())

    def _decoded(self, index: int, out: np.ndarray | None) -> np.ndarray:
        data, _ = self.payload(index)
        try:
            return decode(data, out)
        except ValueError as error:
            raise BctError(
                f"{self.file(index)} is broken ({error})", "replace or remove the file"
            ) from None

    def _sizes(self) -> list[bytes]:
        found = []
        for index, name in enumerate(self.names.tolist()):
            try:
                found.append(b"%s %d" % (name, os.stat(self.file(index)).st_size))
            except OSError as error:
                raise self._unreadable(index, error) from None
        return found

    def _unreadable(self, index: int, error: OSError) -> BctError:
        return BctError(
            f"{self.file(index)} can't be read ({error.strerror}); it is in {self.path}",
            "bring the file back, or mend the list or its root",
        )


class FolderSet(ImageFiles):
    """A folder of class folders; labels follow the sorted class names.

    A class is a folder with images (aligned faces; ImageNet's and Places365's train/), or with
    nothing but a folder `images` that has them (Tiny-ImageNet's train/), or a folder in a folder
    (Omniglot's characters), then called "outer/inner". Hidden folders are left out.
    """

    def __init__(self, path: str | Path):
        root = Path(path)
        classes = _class_folders(os.fsencode(root))
        names = [name for _, images in classes for name in images]
        if not names:
            raise BctError(
                f"{path} has neither train.rec nor sub-folders with images",
                "point `rec` to a folder with train.rec, a .rec file, a list of images, or a "
                "folder of class folders",
            )
        labels = np.repeat(np.arange(len(classes)), [len(images) for _, images in classes])
        super().__init__(root, root, names, labels, [_text(name) for name, _ in classes])
        self.identities = self.class_names

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a name or a file's size does; labels follow from the names."""
        return sha256(*self._sizes())


def _class_folders(root: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Sorted (class, names of its images)."""
    classes = []
    for name in _entries(root)[1]:
        images, folders = _entries(root, name)
        if images or not folders:
            classes.append((name, images))
        elif folders == [name + b"/images"]:
            classes.append((name, _entries(root, folders[0])[0]))
        else:
            classes += [(folder, _entries(root, folder)[0]) for folder in folders]
    return sorted(classes)


def _entries(root: bytes, below: bytes = b"") -> tuple[list[bytes], list[bytes]]:
    """Sorted images and folders in a folder, relative to root."""
    images, folders = [], []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith(b"."):
                    folders.append(os.path.join(below, entry.name))
            elif os.fsdecode(os.path.splitext(entry.name)[1]).lower() in IMAGE_SUFFIXES:
                images.append(os.path.join(below, entry.name))
    return sorted(images), sorted(folders)


def has_classes(folder: Path) -> bool:
    """Whether a folder holds folders but no images: train/ as against a class called "train"."""
    if not folder.is_dir():
        return False
    images, folders = _entries(os.fsencode(folder))
    return bool(folders) and not images


def open_tiny_imagenet_val(folder: Path) -> ImageFiles:
    """Tiny-ImageNet's val/: one folder of images, their classes in val_annotations.txt. Labels
    follow the sorted class names, as in its train/. BctError for a line that does not parse."""
    file = folder / "val_annotations.txt"
    names, classes = [], []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        fields = line.rstrip(b"\r").split(b"\t")
        if fields == [b""]:
            continue
        if len(fields) < 2 or not all(fields[:2]):
            raise _bad_line(file, number, line, "<image>, a tab, <class>", "copy the file again")
        names.append(b"images/" + fields[0])
        classes.append(_text(fields[1]))
    if not names:
        raise BctError(f"{file} names no image", "copy the file again")
    class_names, labels = np.unique(classes, return_inverse=True)
    return ImageFiles(folder, folder, names, labels, class_names.tolist())


def open_list(path: str | Path) -> ImageFiles | Cifar:
    """The images of a list, see above.

    Raises:
        BctError: a line that does not parse, labels that are not 0..K-1, a root that is not there,
            or a manifest that belongs to another list.
    """
    path = Path(path)
    root, names, labels = read_list(path)
    folder, side = path.resolve().parent, path.with_suffix(".json")
    if root is not None and side.is_file():
        class_names, num_classes = _read_manifest(side, labels)
    else:
        class_names, num_classes = None, _count_classes(path, labels)
    root = folder / os.fsdecode(root) if root else _find_root(path, folder, os.fsdecode(names[0]))
    if is_cifar(root):
        return Cifar(root).part(path, names, labels, class_names, num_classes)
    if not root.is_dir():
        raise BctError(
            f"{path}: its root {root} is not there",
            "mend its first line: # root: <folder of the images>",
        )
    class_names = class_names or _folder_names(names, labels)
    return ImageFiles(path, root, names, labels, class_names, num_classes)


def _find_root(path: Path, folder: Path, first: str) -> Path:
    for root in (folder, folder / "train"):
        if (root / first).is_file():
            return root
    raise BctError(
        f"{path}: its first image {first} is neither in {folder} nor in train/ there",
        "write the folder of its images into a new first line: # root: <folder>",
    )


def _count_classes(path: Path, labels: np.ndarray) -> int:
    found = np.unique(labels)
    gaps = np.flatnonzero(found != np.arange(len(found)))
    if len(gaps):
        raise BctError(
            f"{path} has no image of class {gaps[0]}, but some of class {found[-1]}",
            "number the classes 0 to K-1",
        )
    return len(found)


def read_list(path: Path) -> tuple[bytes | None, list[bytes], np.ndarray]:
    """Root as written or None, names and int64 labels of a list. BctError for an empty list or a
    line that does not parse."""
    lines = path.read_bytes().split(b"\n")
    root = None
    if lines[0].startswith(_HEAD):
        root, lines[0] = lines[0][len(_HEAD) :].rstrip(b"\r"), b""
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        fields = line.rsplit(None, 1)  # at spaces and tabs; those at the end are left out
        if not fields:
            continue
        label = fields[-1]
        if len(fields) < 2 or not label.isdigit() or len(label) > 9 or b"\0" in line:
            raise _bad_line(
                path, number, line, "<path> <label>", "mend the line; labels are 0 to K-1"
            )
        names.append(fields[0])
        labels.append(int(label))
    if not names:
        raise BctError(f"{path} names no image", "give a list with a line for each image")
    return root, names, np.array(labels, np.int64)


def list_root(path: Path, root: Path) -> str:
    """What a list at `path` calls its root: relative if it is the list's folder or in it, so that
    both can be moved."""
    root, folder = root.resolve(), path.resolve().parent
    return str(root.relative_to(folder) if root.is_relative_to(folder) else root)


def list_text(path: Path, root: Path, names: list[bytes], labels: np.ndarray) -> bytes:
    """A list as read_list reads it. BctError for a name that it would not read as it is."""
    lines = [_HEAD + os.fsencode(list_root(path, root))]
    for name, label in zip(names, labels.tolist(), strict=True):
        lines.append(b"%s %d" % (name, label))
        if b"\n" in name or lines[-1].rsplit(None, 1)[0] != name:
            raise BctError(
                f"{_text(name)!r} can't be in a list: it has a line break, or a space at its end",
                "rename the file",
            )
    if b"\n" in lines[0]:
        raise BctError(f"{str(root)!r} can't be in a list: it has a line break", "rename it")
    return b"\n".join(lines) + b"\n"


def _bad_line(file: Path, number: int, line: bytes, form: str, do: str) -> BctError:
    return BctError(f"{file}, line {number} is not {form}: {_text(line[:80])!r}", do)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _folder_names(names: list[bytes], labels: np.ndarray) -> list[str] | None:
    """Names of the classes' folders if each class has one of its own."""
    folders: dict[int, bytes] = {}
    for name, label in zip(names, labels.tolist(), strict=True):
        folder = os.path.dirname(name).removesuffix(b"/images")
        if folders.setdefault(label, folder) != folder:
            return None
    if not all(folders.values()) or len(set(folders.values())) < len(folders):
        return None
    return [_text(folders[label]) for label in sorted(folders)]


def _read_manifest(side: Path, labels: np.ndarray) -> tuple[list[str] | None, int]:
    """Class names and their number. BctError for another list's."""
    about = read_json(side)
    about = about if isinstance(about, dict) else {}
    names, classes = about.get("class_names"), about.get("classes")
    strings = names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))
    if (
        not strings
        or not isinstance(classes, int)
        or (names is not None and len(names) != classes)
        or about.get("images") != len(labels)
        or labels.max() >= classes
    ):
        raise BctError(
            f"{side} does not belong to the list beside it",
            "make both again with tools/split_dataset.py, or delete the .json",
        )
    return names, classes
