"""Data sets: record files, image folders and lists, CIFAR, and insightface's synthetic one.

bct/data/image_set.py says what a data set is.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.cifar import Cifar, is_cifar
from bct.data.image_files import (
    FolderSet,
    has_classes,
    open_list,
    open_tiny_imagenet_val,
)
from bct.data.image_set import ImageSet
from bct.data.images import SIZE, decode
from bct.data.recordio import RecordReader
from bct.errors import BctError
from bct.files import sha256


class RecordSet(ImageSet):
    """The images of a record file.

    With an insightface header (record 0: no data, two labels) the images are keys 1..n and index i
    is key i + 1; identity records behind them are left out. Without one every record is an image.

    Args:
        path: the .rec file.
        backend: "native", or "mxnet" to read through MXNet.
    """

    def __init__(self, path: str | Path, backend: str = "native"):
        self.path = Path(path)
        if backend == "mxnet":
            from bct.data.recordio_mxnet import MxnetReader as reader
        else:
            reader = RecordReader
        self.reader = reader(self.path)
        self._header_classes = None
        self.keys = self.reader.keys
        if 0 in self.reader:
            header, data = self.reader.read(0)
            if np.ndim(header.label) and len(data) == 0:
                self.keys, self._header_classes = self._read_header(header.label)

    def _read_header(self, label: np.ndarray) -> tuple[np.ndarray, int]:
        """[n + 1, n + 1 + identities] as insightface writes it, or [n + 1, classes] as split
        shards have it; there are never more classes than images, so the two can't be confused."""
        if len(label) != 2 or not np.isfinite(label).all():
            raise BctError(
                f"{self.path}: the labels of its header are {label.tolist()}, not two counts",
                "copy both files again, or write the set with insightface's or our tools",
            )
        images, second = int(label[0]) - 1, int(label[1])
        keys = self.reader.keys
        found = np.count_nonzero((keys >= 1) & (keys <= images))  # keys are distinct
        if images < 1 or found < images:
            raise BctError(
                f"{self.path}: its header promises images 1 to {images}, its index has {found} of "
                "these keys",
                "the .rec/.idx pair is incomplete or mixed up: copy both files again; "
                "tools/check_rec.py lists what is missing",
            )
        return np.arange(1, images + 1), second - images - 1 if second > images else second

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (n,), label of every index; reads the record headers only."""
        order = np.argsort(self.reader.keys, kind="stable")
        at = order[np.searchsorted(self.reader.keys, self.keys, sorter=order)]
        labels = self.reader.labels()[at]
        wrong = np.flatnonzero(~(np.abs(labels) < 2**31))
        if len(wrong):
            raise self.reader.broken(int(self.keys[wrong[0]]), f"its label is {labels[wrong[0]]}")
        return labels.astype(np.int64)

    @property
    def num_classes(self) -> int:
        return self._header_classes or int(self.labels.max()) + 1

    def payload(self, index: int) -> tuple[memoryview, int]:
        """Encoded image and label."""
        header, data = self.reader.read(int(self.keys[index]))
        label = np.ravel(header.label)[0]
        if not abs(label) < 2**31:  # NaN too
            raise self.reader.broken(int(self.keys[index]), f"its label is {label}")
        return data, int(label)

    def load(self, index: int, out: np.ndarray) -> int:
        """Decodes an image into `out` uint8 (H, W, 3), returns its label. BctError if broken."""
        return self._decoded(index, out)[1]

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), of the record's own size. BctError if broken."""
        return self._decoded(index, None)[0]

    def _decoded(self, index: int, out: np.ndarray | None) -> tuple[np.ndarray, int]:
        data, label = self.payload(index)
        try:
            return decode(data, out), label
        except ValueError as error:
            raise self.reader.broken(int(self.keys[index]), str(error)) from None

    def describe(self, index: int) -> str:
        return f"{self.path}, key {self.keys[index]}"

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the file's size, its index or any of 256 sampled records does."""
        sample = np.unique(np.linspace(0, len(self) - 1, 256).astype(np.int64))
        records = [bytes(self.payload(i)[0]) for i in sample]
        size = str(self.path.stat().st_size)
        return sha256(size, self.reader.offsets.tobytes(), self.keys.tobytes(), *records)


class SyntheticSet(ImageSet):
    """insightface's `rec = "synthetic"`: one random image, for timing without data."""

    path = Path("synthetic")
    fingerprint = "synthetic"

    def __init__(self, num_image: int, num_classes: int, size: int = SIZE):
        self.labels = np.arange(num_image) % num_classes
        self.num_classes = num_classes
        self._image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, out: np.ndarray) -> int:
        out[:] = self._image
        return int(self.labels[index])

    def image(self, index: int) -> np.ndarray:
        return self._image

    def describe(self, index: int) -> str:
        return f"synthetic image {index}"


def open_images(rec: str | Path, backend: str = "native") -> ImageSet:
    """Opens a data set. Raises BctError if there is none.

    Args:
        rec: a .rec file, or the same without its suffix; a .txt list of images, see
            bct/data/image_files.py; `train` or `test` of CIFAR; Tiny-ImageNet's val/; or a folder.
            A folder's training set is opened: its train.rec, its part `train` of CIFAR, its
            train/ of class folders (ImageNet, Places365), its train.txt, else its own folders are
            the classes (aligned faces, Omniglot).
        backend: how record files are read, "native" or "mxnet".
    """
    path = Path(rec)
    if path.suffix == ".txt" and path.is_file():
        return open_list(path)
    for part in (path, path / "train"):
        if is_cifar(part):
            return Cifar(part)
    for file in (path, Path(f"{path}.rec"), path / "train.rec"):
        if file.is_file():
            return RecordSet(file, backend)
    if has_classes(path / "train"):
        return FolderSet(path / "train")
    if (path / "train.txt").is_file():
        return open_list(path / "train.txt")
    if (path / "val_annotations.txt").is_file():
        return open_tiny_imagenet_val(path)
    if path.is_dir():
        return FolderSet(path)
    do = "give a .rec file, a list of images, or a folder with train.rec or classes (key `rec`)"
    if "_part_" in path.stem:
        do = "make the parts of the whole set first: python tools/split_dataset.py <the whole set>"
    raise BctError(f"there is no data set at {path}", do)
