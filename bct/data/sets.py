"""Data sets: record files, image folders and lists, CIFAR, and insightface's synthetic one.

bct/data/image_set.py says what a data set is.
"""

import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.cifar import Cifar, is_cifar
from bct.data.image_files import FolderSet, as_text, has_classes, open_tiny_imagenet_val
from bct.data.image_lists import Listed, list_classes, list_images, read_list
from bct.data.image_set import ImageSet
from bct.data.images import ALIGN, SIZE, Size, WrongSize, decode, shape_of
from bct.data.labels import check_labels
from bct.data.lst_files import open_lst
from bct.data.market_files import is_market, open_market_train
from bct.data.recordio import BROKEN, RecordReader
from bct.data.train_clean import open_train_clean
from bct.distributed import say
from bct.errors import BctError, printable
from bct.files import sha256


class RecordSet(ImageSet):
    """The images of a record file.

    With an insightface header (record 0: no data, two labels) the images are keys 1..n and index i
    is key i + 1; identity records behind them are left out. Without one every record with data is
    an image; how many have none is said.

    Classes are counted by the images' labels, which takes a look at every record's header: 0.5 s
    for five million in the page cache, else as long as the disk takes for the file.

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
        self._header = None
        if 0 in self.reader:
            header, data = self.reader.read(0)
            if np.ndim(header.label) and len(data) == 0:
                self._header = header.label
        self.keys = self._without_header() if self._header is None else self._with_header()

    def _without_header(self) -> np.ndarray:
        """Keys of the records that have data. BctError if none has."""
        keys, empty = self.reader.keys, self._heads[1] == 0
        if empty.all():
            raise BctError(f"{self.path} holds no image: none of its records has data", BROKEN)
        if empty.any():
            say(
                f"{self.path}: {empty.sum()} records without data are no images, e.g. key "
                f"{keys[empty][0]} (there is no header record 0, which would say what they are)"
            )
        return keys[~empty] if empty.any() else keys

    def _with_header(self) -> np.ndarray:
        """Keys 1..n: the header's labels are [n + 1, n + 1 + identities] as insightface writes
        them, or [n + 1, classes] as split shards have them."""
        label = self._header
        if len(label) != 2 or not np.isfinite(label).all():
            raise BctError(
                f"{self.path}: the labels of its header are {label.tolist()}, not two counts",
                "copy both files again, or write the set with insightface's or our tools",
            )
        images, keys = image_count(float(label[0]), self._has_data), self.reader.keys
        found = np.count_nonzero((keys >= 1) & (keys <= images))  # keys are distinct
        if images < 1 or found < images:
            raise BctError(
                f"{self.path}: its header promises images 1 to {images}, its index has {found} of "
                "these keys",
                "the .rec/.idx pair is incomplete or mixed up: copy both files again; "
                "tools/check_rec.py lists what is missing",
            )
        return np.arange(1, images + 1)

    def _has_data(self, key: int) -> bool:
        return key in self.reader and len(self.reader.read(key)[1]) > 0

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _heads(self) -> tuple[np.ndarray, np.ndarray]:
        return self.reader.heads()

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (n,), label of every index; reads the record headers only.

        BctError for labels that bct.data.labels refuses, or another number of classes than the
        header says.
        """
        labels = self._heads[0]
        if not np.array_equal(self.keys, self.reader.keys):
            order = np.argsort(self.reader.keys, kind="stable")
            labels = labels[order[np.searchsorted(self.reader.keys, self.keys, sorter=order)]]
        do = "number the classes 0 to C-1, each with an image; tools/check_rec.py lists all faults"
        classes = check_labels(labels, str(self.path), self.describe, do)
        if self._header is not None:
            # all counts in the header are float32, which are exact up to 2^24
            first, second = (np.float32(value) for value in self._header)
            if second not in (np.float32(classes), np.float32(len(self) + 1 + classes)):
                said = int(second) - (int(first) if second > len(self) else 0)
                raise BctError(
                    f"{self.path}: its header says {said} classes, its labels {classes} (it was "
                    "packed from a list that is not sorted by label, or is damaged)",
                    "pack it again, sorted by label; tools/check_rec.py lists what is wrong",
                )
        return labels.astype(np.int64)

    @cached_property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1  # all are used: see `labels`

    def payload(self, index: int) -> tuple[memoryview, int]:
        """Encoded image and label."""
        header, data = self.reader.read(int(self.keys[index]))
        label = np.ravel(header.label)[0]
        if not 0 <= label < 2**31 or label != int(label):  # NaN too
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
        except WrongSize as error:
            raise BctError(f"{self.describe(index)}: {error}", ALIGN) from None
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


def image_count(first: float, has_data: Callable[[int], bool]) -> int:
    """n, where a header's first label is n + 1 as float32. Beyond 2^24 several numbers have the
    same float32; then n is the last of them that has data.

    Args:
        has_data: whether there is a record with this key that has data.
    """
    images = int(first) - 1
    while first >= 2**24 and np.float32(images + 2) == first and has_data(images + 1):
        images += 1
    while first >= 2**24 and np.float32(images) == first and not has_data(images):
        images -= 1
    return images


class RecordList(ImageSet):
    """The images of a record file that a list names, a line "<number> <label>" for each.

    Numbers count the file's images from 0. Labels are the list's: what the records say is not
    looked at. (AdvBCT's loader of such lists, MS1M's, takes the records' own.)

    Args:
        path: of the list. records: the file's images.
        names, labels: of the list. class_names: one per label, or None.
    """

    def __init__(
        self,
        path: Path,
        records: RecordSet,
        names: list[bytes],
        labels: np.ndarray,
        class_names: list[str] | None,
        num_classes: int,
    ):
        for name in names:
            if not name.isdigit() or len(name) > 9 or int(name) >= len(records):
                raise BctError(
                    f"{path} names an image {as_text(name)!r} of {records.path}",
                    f"name its images by their numbers, 0 to {len(records) - 1}",
                )
        self.path, self.records, self.root = path, records, records.path
        self.names, self.labels = np.array(names, bytes), np.array(labels, np.int64)
        self.index = self.names.astype(np.int64)
        self.class_names, self.num_classes = class_names, num_classes

    @classmethod
    def of(cls, records: RecordSet) -> "RecordList":
        """All images of a record file, with their own labels."""
        names = np.arange(len(records)).astype(bytes).tolist()
        return cls(records.path, records, names, records.labels, None, records.num_classes)

    def __len__(self) -> int:
        return len(self.index)

    def payload(self, index: int) -> tuple[memoryview, int]:
        """Encoded image and label."""
        return self.records.payload(int(self.index[index]))[0], int(self.labels[index])

    def load(self, index: int, out: np.ndarray) -> int:
        """Decodes an image into `out` uint8 (H, W, 3), returns its label. BctError if broken."""
        self.records.load(int(self.index[index]), out)
        return int(self.labels[index])

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), of the record's own size. BctError if broken."""
        return self.records.image(int(self.index[index]))

    def describe(self, index: int) -> str:
        return self.records.describe(int(self.index[index]))

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the record file's does, a number or a label."""
        return sha256(self.records.fingerprint, self.index.tobytes(), self.labels.tobytes())


class SyntheticSet(ImageSet):
    """insightface's `rec = "synthetic"`: one random image, for timing without data."""

    path = Path("synthetic")
    fingerprint = "synthetic"

    def __init__(self, num_image: int, num_classes: int, size: Size = SIZE):
        self.labels = np.arange(num_image) % num_classes
        self.num_classes = num_classes
        self._image = np.random.default_rng(0).integers(0, 256, (*shape_of(size), 3), np.uint8)

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
        rec: a .rec file, or the same without its suffix; a list of images, .txt or .lst, see
            bct/data/image_lists.py and lst_files.py, or of records, see RecordList; GLDv2's
            train_clean.csv; Market-1501's bounding_box_train; `train` or `test` of CIFAR;
            Tiny-ImageNet's val/; or a folder. A folder's training set is opened: its train.rec, its
            part `train` of CIFAR, its train_clean.csv beside train/, its bounding_box_train, its
            train/ of class folders (ImageNet, Places365), its train.txt, else its own folders are
            the classes (aligned faces, Omniglot).
        backend: how record files are read, "native" or "mxnet".
    """
    path = Path(rec)
    found = open_known(path, backend)
    if found is not None:
        return found
    if path.is_dir():
        return FolderSet(path)
    raise BctError(f"there is no data set at {path}", _how_to_make(path))


def _how_to_make(path: Path) -> str:
    """What to do where there is no such set: make it, if its name is that of a part."""
    split = "python tools/split_dataset.py"
    part = re.search(r"_part_(\d+)_(class|data)", path.stem)
    if part:
        ratio = min(int(part[1]), 100 - int(part[1]))
        asked = "" if ratio == 30 else f" --by {part[2]} --ratio {ratio}"
        asked += f" --out {path.parent}" if path.suffix == ".txt" else ""
        return f"make the parts of the whole set first: {split} <the whole set>{asked}"
    share = re.search(r"_(old|new)_(\d+)percent_(class|data)$", path.stem)
    if share:
        ratio = {"old": int(share[2]), "new": 100 - int(share[2])}[share[1]] or 30
        return (
            "make AdvBCT's lists first: "
            f"{split} <the whole list> --split advbct --ratio {ratio} --out {path.parent}"
        )
    return "give a .rec file, a list of images, or a folder with train.rec or classes (key `rec`)"


def open_known(path: Path, backend: str = "native") -> ImageSet | None:
    """What open_images opens, but None for a folder that may hold any images, and for nothing."""
    if path.suffix == ".txt" and path.is_file():
        return open_text(path, backend)
    if path.suffix == ".lst" and path.is_file():
        return open_lst(path)
    if path.suffix == ".csv" and path.is_file():
        return open_train_clean(path)
    for part in (path, path / "train"):
        if is_cifar(part):
            return Cifar(part)
    for file in (path, Path(f"{path}.rec"), path / "train.rec"):
        if file.is_file():
            return RecordSet(file, backend)
    if (path / "train_clean.csv").is_file() and (path / "train").is_dir():
        return open_train_clean(path / "train_clean.csv")
    if is_market(path):
        return open_market_train(path)
    if has_classes(path / "train"):
        return FolderSet(path / "train")
    if (path / "train.txt").is_file():
        return open_text(path / "train.txt", backend)
    if (path / "val_annotations.txt").is_file():
        return open_tiny_imagenet_val(path)
    return None


def open_text(path: Path, backend: str = "native") -> ImageSet:
    """The images of a list of files, CIFAR's numbers or records, see bct/data/image_lists.py. Of
    records it is if its root is a .rec file; or it has no root, numbers for names, and train.rec
    beside it."""
    listed = read_list(path)
    file = records_of(path, listed)
    if file is None:
        return list_images(path, listed)
    num_classes, class_names = list_classes(path, listed)
    if not file.is_file():
        raise BctError(
            f"{path}: its root {printable(file)} is not there",
            "mend its first line: # root: <record file>",
        )
    records = RecordSet(file, backend)
    return RecordList(path, records, listed.names, listed.labels, class_names, num_classes)


def records_of(path: Path, listed: Listed) -> Path | None:
    """The record file that a list is about, None if it is about image files."""
    folder = path.resolve().parent
    if listed.root is not None:
        root = Path(os.path.normpath(folder / os.fsdecode(listed.root)))
        return root if root.suffix == ".rec" and not root.is_dir() else None
    numbers = all(name.isdigit() for name in listed.names)
    return folder / "train.rec" if numbers and (folder / "train.rec").is_file() else None
