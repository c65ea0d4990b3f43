"""Sets of images of any size in files: folders of classes; lists of files are image_lists.py's.

Names are bytes, the file system's own, in any locale. Only regular files of a bounded size are
read.
"""

import os
import stat
from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.image_set import ImageSet
from bct.data.images import ALIGN, WrongSize, decode
from bct.distributed import say
from bct.errors import BctError, printable
from bct.files import sha256, without_mark

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),  # ORL, Yale B and FERET are PGM or PPM
}
MAX_BYTES = 1 << 28  # of an image file: more than the largest image needs that is decoded


class ImageFiles(ImageSet):
    """Image files below a folder.

    Args:
        path: what was opened: the folder, or the list.
        root: the folder that names are relative to.
        names: of the images.
        labels: of the images, below the number of classes.
        class_names: one per label, or None.
        num_classes: if there are no class_names.

    Attributes:
        lacking: files may be missing; else the fingerprint raises BctError for one that is.
    """

    lacking = False

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
            return read_regular(self.file(index)), int(self.labels[index])
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
        return printable(self.file(index))

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a name, a file's size or a label does."""
        return sha256(*self._sizes(), self.labels.tobytes())

    def _decoded(self, index: int, out: np.ndarray | None) -> np.ndarray:
        data, _ = self.payload(index)
        try:
            return decode(data, out)
        except WrongSize as error:
            raise BctError(f"{self.describe(index)}: {error}", ALIGN) from None
        except ValueError as error:
            raise BctError(
                f"{self.describe(index)} is broken ({error})", "replace or remove the file"
            ) from None

    def _sizes(self) -> list[bytes]:
        found = []
        for index, name in enumerate(self.names.tolist()):
            try:
                found.append(b"%s %d" % (name, os.stat(self.file(index)).st_size))
            except OSError as error:
                if not self.lacking:
                    raise self._unreadable(index, error) from None
                found.append(b"%s, which is missing" % name)
        return found

    def _unreadable(self, index: int, error: OSError) -> BctError:
        return BctError(
            f"{self.describe(index)} can't be read ({error.strerror}); it is in {self.path}",
            "bring the file back, or mend the list or its root",
        )


def read_regular(path: str) -> bytes:
    """A file's bytes. OSError for a device, a FIFO, or more than MAX_BYTES; none is waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(0, "it is no regular file")
        if about.st_size > MAX_BYTES:
            raise OSError(0, f"it has {about.st_size} bytes, more than {MAX_BYTES}")
        return file.read(about.st_size)


class FolderSet(ImageFiles):
    """A folder of class folders; labels follow the sorted class names.

    A class is a folder with images (aligned faces; ImageNet's and Places365's train/), or with
    nothing but a folder `images` that has them (Tiny-ImageNet's train/), or a folder in a folder
    (Omniglot's characters), then called "outer/inner". Hidden folders are left out; so are folders
    without images and files of other kinds, and how many there are is said, unless `quiet`.
    """

    def __init__(self, path: str | Path, quiet: bool = False):
        root = Path(path)
        found = _class_folders(os.fsencode(root))
        classes = [(name, images) for name, images, _ in found if images]
        names = [name for _, images in classes for name in images]
        if not names:
            raise BctError(
                f"{path} has neither train.rec nor sub-folders with images",
                "point `rec` to a folder with train.rec, a .rec file, a list of images, or a "
                f"folder of class folders; images are {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        if not quiet:
            _say_left_out(root, found)
        labels = np.repeat(np.arange(len(classes)), [len(images) for _, images in classes])
        super().__init__(root, root, names, labels, [as_text(name) for name, _ in classes])
        self.identities = self.class_names

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a name or a file's size does; labels follow from the names."""
        return sha256(*self._sizes())


_Class = tuple[bytes, list[bytes], list[bytes]]  # name, its images, its files of other kinds


def _class_folders(root: bytes) -> list[_Class]:
    """Sorted. A folder that has neither images nor folders is a class without images."""
    classes = []
    for name in entries(root)[1]:
        images, folders, others = entries(root, name)
        if images or not folders:
            classes.append((name, images, others))
        elif folders == [name + b"/images"]:  # the other files are those of Tiny-ImageNet's boxes
            inner, _, others = entries(root, folders[0])
            classes.append((name, inner, others))
        else:
            for folder in folders:
                inner, _, others = entries(root, folder)
                classes.append((folder, inner, others))
    return sorted(classes)


def _say_left_out(root: Path, found: list[_Class]) -> None:
    empty = [name for name, images, _ in found if not images]
    others = [file for _, _, files in found for file in files]
    for files, what in (
        (empty, f"of {len(found)} class folders have no image and are no classes"),
        (others, "files in the class folders are no images by their suffix and are left out"),
    ):
        if files:
            say(f"{root}: {len(files)} {what}, e.g. {as_text(files[0])!r}")


def entries(root: bytes, below: bytes = b"") -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Sorted images, folders and other files in a folder, relative to root; hidden ones are not
    looked at."""
    images, folders, others = [], [], []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            name = os.path.join(below, entry.name)
            if entry.is_dir():
                if not entry.name.startswith(b"."):
                    folders.append(name)
            elif os.fsdecode(os.path.splitext(entry.name)[1]).lower() in IMAGE_SUFFIXES:
                images.append(name)
            elif not entry.name.startswith(b"."):
                others.append(name)
    return sorted(images), sorted(folders), sorted(others)


def has_classes(folder: Path) -> bool:
    """Whether a folder holds folders but no images: train/ as against a class called "train"."""
    if not folder.is_dir():
        return False
    images, folders, _ = entries(os.fsencode(folder))
    return bool(folders) and not images


def open_tiny_imagenet_val(folder: Path) -> ImageFiles:
    """Tiny-ImageNet's val/: one folder of images, their classes in val_annotations.txt. Labels
    follow the sorted class names, as in its train/. BctError for a line that does not parse."""
    file = folder / "val_annotations.txt"
    names, classes = [], []
    for number, line in enumerate(without_mark(file, file.read_bytes()).split(b"\n"), 1):
        fields = line.rstrip(b"\r").split(b"\t")
        if fields == [b""]:
            continue
        if len(fields) < 2 or not all(fields[:2]) or leads_out(fields[0]):
            raise bad_line(file, number, line, "<image>, a tab, <class>", "copy the file again")
        names.append(b"images/" + fields[0])
        classes.append(as_text(fields[1]))
    if not names:
        raise BctError(f"{file} names no image", "copy the file again")
    class_names, labels = np.unique(classes, return_inverse=True)
    return ImageFiles(folder, folder, names, labels, class_names.tolist())


def leads_out(name: bytes) -> bool:
    """Whether a name is not that of a file below the folder that it is relative to."""
    return name.startswith(b"/") or b".." in name.split(b"/")


def bad_line(file: Path, number: int, line: bytes, form: str, do: str) -> BctError:
    return BctError(f"{file}, line {number} is not {form}: {as_text(line[:80])!r}", do)


def as_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
