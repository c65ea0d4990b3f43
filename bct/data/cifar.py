"""CIFAR-100 and CIFAR-10 from torchvision's own files, in memory."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import sha256
from bct.safe.dicts import load_dict

_CIFAR = {  # file with the class names: their key, the labels' key, the files of each part
    "meta": ("fine_label_names", "fine_labels", {"train": ["train"], "test": ["test"]}),
    "batches.meta": (
        "label_names",
        "labels",
        {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]},
    ),
}


def is_cifar(path: Path) -> bool:
    """Whether a path is `train` or `test` of CIFAR-100 or CIFAR-10, as torchvision keeps them."""
    return _cifar_kind(path) is not None


def _cifar_kind(path: Path) -> str | None:
    for meta, (_, _, parts) in _CIFAR.items():
        if path.name in parts:
            needed = [meta, *parts[path.name]]
            if all(path.with_name(name).is_file() for name in needed):
                return meta
    return None


class Cifar(ImageSet):
    """CIFAR-100 with its 100 fine labels, or CIFAR-10, in memory.

    Args:
        path: folder/train or folder/test, where folder is torchvision's cifar-100-python or
            cifar-10-batches-py. CIFAR-10 has no such files, but its parts are called so.
    """

    native = 32  # all images have this size, so that the device can resize them

    def __init__(self, path: Path):
        self.path = self.root = path
        meta = _cifar_kind(path)
        names_key, labels_key, parts = _CIFAR[meta]
        classes = _read_cifar(path.with_name(meta)).get(names_key)
        files = [path.with_name(name) for name in parts[path.name]]
        batches = [_read_cifar(file) for file in files]
        for file, batch in zip(files, batches, strict=True):
            pixels, labels = batch.get("data"), batch.get(labels_key)
            if (
                not isinstance(pixels, np.ndarray)
                or pixels.dtype != np.uint8
                or pixels.shape[1:] != (3 * self.native**2,)
                or not isinstance(labels, list)
                or len(labels) != len(pixels)
                or not isinstance(classes, list)
                or not all(isinstance(c, int) and 0 <= c < len(classes) for c in labels)
            ):
                raise BctError(
                    f"{file} does not hold CIFAR's images and labels",
                    "download the set again, with torchvision",
                )
        self.class_names = [c.decode() if isinstance(c, bytes) else str(c) for c in classes]
        self.num_classes = len(classes)
        planes = [batch["data"] for batch in batches]  # (n, 3 * 32 * 32), a plane per colour
        self.pixels = planes[0] if len(planes) == 1 else np.concatenate(planes)
        self.labels = np.array([c for batch in batches for c in batch[labels_key]], np.int64)
        self.names = np.arange(len(self.labels)).astype(bytes)

    def part(
        self,
        path: Path,
        names: list[bytes],
        labels: np.ndarray,
        class_names: list[str] | None,
        num_classes: int,
    ) -> "Cifar":
        """The images of a list, which names them by number. BctError for one that is not there."""
        for name in names:
            if not name.isdigit() or len(name) > 9 or int(name) >= len(self):
                raise BctError(
                    f"{path} names an image {name.decode(errors='replace')!r} of {self.path}",
                    f"name its images by their numbers, 0 to {len(self) - 1}",
                )
        part = copy.copy(self)
        vars(part).pop("fingerprint", None)
        part.path, part.names, part.labels = path, np.array(names, bytes), labels
        part.class_names, part.num_classes = class_names, num_classes
        part.pixels = self.pixels[[int(name) for name in names]]
        return part

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """uint8 (32, 32, 3)."""
        side = self.native
        return np.ascontiguousarray(self.pixels[index].reshape(3, side, side).transpose(1, 2, 0))

    def load(self, index: int, out: np.ndarray) -> int:
        """Copies an image into `out` uint8 (32, 32, 3), returns its label."""
        if out.shape[:2] != (self.native, self.native):
            raise BctError(
                f"the images of {self.path} are {self.native}x{self.native}, not "
                f"{out.shape[1]}x{out.shape[0]}",
                "use a view that resizes them",
            )
        out[:] = self.image(index)
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"{self.path}, image {int(self.names[index])}"

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a pixel or a label does."""
        return sha256(self.pixels.tobytes(), self.labels.tobytes())


def _read_cifar(path: Path) -> dict[int | str, Any]:
    try:
        return load_dict(path.read_bytes())
    except ValueError as error:
        raise BctError(
            f"{path} is not one of CIFAR's files ({error})",
            "download the set again, with torchvision",
        ) from None
