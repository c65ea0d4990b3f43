"""Face data sets: record files, image folders, and insightface's synthetic one.

A data set maps an index to an image and a label: `load` decodes into a given array and returns the
label. Row i of every artefact of the old model belongs to index i.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from bct.errors import BctError
from bct.files import sha256
from bct.images import SIZE, decode
from bct.recordio import RecordReader

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class RecordFaces:
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
            from bct.recordio_mxnet import MxnetReader as reader
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
        data, label = self.payload(index)
        try:
            decode(data, out)
        except ValueError as error:
            raise self.reader.broken(int(self.keys[index]), str(error)) from None
        return label

    def describe(self, index: int) -> str:
        return f"{self.path}, key {self.keys[index]}"

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the file's size, its index or any of 256 sampled records does."""
        sample = np.unique(np.linspace(0, len(self) - 1, 256).astype(np.int64))
        records = [bytes(self.payload(i)[0]) for i in sample]
        size = str(self.path.stat().st_size)
        return sha256(size, self.reader.offsets.tobytes(), self.keys.tobytes(), *records)


class FolderFaces:
    """One sub-folder per identity; labels follow the sorted names. Images must be aligned."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.identities = sorted(p.name for p in self.path.iterdir() if p.is_dir())
        pairs = [
            (file, label)
            for label, identity in enumerate(self.identities)
            for file in sorted((self.path / identity).iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not pairs:
            raise BctError(
                f"{self.path} has neither train.rec nor sub-folders with images",
                "point `rec` to a folder with train.rec, a .rec file, or a folder of identities",
            )
        self.files = [file for file, _ in pairs]
        self.labels = np.array([label for _, label in pairs], np.int64)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_classes(self) -> int:
        return len(self.identities)

    def payload(self, index: int) -> tuple[bytes, int]:
        return self.files[index].read_bytes(), int(self.labels[index])

    def load(self, index: int, out: np.ndarray) -> int:
        data, label = self.payload(index)
        try:
            decode(data, out)
        except ValueError as error:
            raise BctError(
                f"{self.files[index]} is broken ({error})", "replace or remove the file"
            ) from None
        return label

    def describe(self, index: int) -> str:
        return str(self.files[index])

    @cached_property
    def fingerprint(self) -> str:
        names = [f"{file.relative_to(self.path)} {file.stat().st_size}" for file in self.files]
        return sha256(*names)


class SyntheticFaces:
    """insightface's `rec = "synthetic"`: one random image, for timing without data."""

    path = Path("synthetic")
    fingerprint = "synthetic"

    def __init__(self, num_image: int, num_classes: int):
        self.labels = np.arange(num_image) % num_classes
        self.num_classes = num_classes
        self._image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, out: np.ndarray) -> int:
        out[:] = self._image
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"synthetic image {index}"


Faces = RecordFaces | FolderFaces | SyntheticFaces


def open_faces(rec: str | Path, backend: str = "native") -> Faces:
    """Opens a data set: a .rec file, the same without its suffix, a folder with train.rec, or a
    folder of identity folders. Raises BctError if there is none."""
    path = Path(rec)
    for file in (path, Path(f"{path}.rec"), path / "train.rec"):
        if file.is_file():
            return RecordFaces(file, backend)
    if path.is_dir():
        return FolderFaces(path)
    do = "give a .rec file, a folder with train.rec or a folder of identity folders (key `rec`)"
    if "_part_" in path.stem:
        do = "make the parts of the whole set first: python tools/split_dataset.py <the whole set>"
    raise BctError(f"there is no data set at {path}", do)
