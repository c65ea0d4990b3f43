"""Verification sets in insightface's `.bin` format as a protocol of pairs.

A `.bin` is a pickle of (list of 2P encoded images, list of P same-or-not flags); images 2i and
2i + 1 are pair i.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bct.data.image_set import ImageSet
from bct.data.images import SIZE, decode
from bct.distributed import say
from bct.errors import BctError
from bct.files import sha256
from bct.metrics.folds import Accuracy, accuracy
from bct.models.embed import embed_set
from bct.protocols.protocol import Pairs, Protocol
from bct.safe.lists import load_lists

_GROWTH, _FREE = 1024, 1 << 28  # how many times its file's size a set may take, beyond 256 MiB
_FORM = "use a .bin made by insightface's tools, a pickle of (images, flags)"
_LONGEST = 16  # an image's longer side, in shorter sides


class VerificationSet(ImageSet):
    """images uint8 (2P, H, W, 3), decoded; issame bool (P,)."""

    mirror = True
    num_classes = 1

    def __init__(self, path: Path, images: np.ndarray, issame: np.ndarray, fingerprint: str):
        self.path, self.images, self.issame, self.fingerprint = path, images, issame, fingerprint
        self.labels = np.zeros(len(images), np.int64)
        self.native = images.shape[1]

    @property
    def only(self) -> str | None:
        """ "genuine" or "impostor" if all pairs are; accuracy and TAR at FAR then say nothing."""
        if self.issame.all():
            return "genuine"
        return None if self.issame.any() else "impostor"

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, out: np.ndarray) -> int:
        out[:] = self.images[index]
        return 0

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def describe(self, index: int) -> str:
        return f"{self.path}, image {index}"


def open_bin(path: str | Path) -> Protocol:
    """A verification set as a protocol. Pairs of an image with itself are left out, as a remark of
    the protocol says. BctError like load_bin, and if no pair is left."""
    images = load_bin(path)
    every = images.images.reshape(-1, 2, *images.images.shape[1:])
    kept = np.flatnonzero([not np.array_equal(*pair) for pair in every])
    remarks = []
    if len(lost := np.setdiff1d(np.arange(len(every)), kept)):
        remarks = [
            f"{len(lost):,} of {len(every):,} pairs of {images.name} are left out, as both images "
            f"are one: pair {lost[0]}{' and others' * (len(lost) > 1)}."
        ]
    if not len(kept):
        raise BctError(f"{path}: all pairs are of an image with itself", "write the set again")
    return Protocol(
        name=images.name,
        images=images,
        pairs=Pairs(2 * kept, 2 * kept + 1, images.issame[kept]),
        thumbnail=images.load,
        remarks=remarks,
    )


def load_bins(folder: Path, names: Sequence[str]) -> list[VerificationSet]:
    """The sets of a folder, named with or without .bin. BctError like load_bin, or for two sets of
    one name: their results would be one."""
    sets = [load_bin(folder / f"{name.removesuffix('.bin')}.bin") for name in names]
    called = [images.name for images in sets]
    if twice := [name for name in called if called.count(name) > 1]:
        raise BctError(
            f"val_targets = {list(names)!r}: two sets are called {twice[0]}",
            "name each set once, and give sets of one name names of their own",
        )
    return sets


def load_bin(path: str | Path, size: int = SIZE) -> VerificationSet:
    """Reads a verification set, of pickle's protocols 0 to 5.

    Images are bytes, byte arrays or rows of uint8. Those of another size have their shorter side
    resized and their middle cut out, which is said. Flags are booleans or 0 and 1, floats too.

    Raises BctError: missing file, a pickle that asks for anything but arrays and bytes, a broken
    image, counts that do not match.
    """
    path = Path(path)
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise BctError(
            f"verification set {path} {found}",
            "check the path; in a config rec_val names the folder, val_targets the files in it",
        )
    data = path.read_bytes()
    try:
        lists = load_lists(data)
        if len(lists) != 2:
            raise ValueError(f"{len(lists)} lists, not one of images and one of flags")
    except ValueError as error:
        raise BctError(f"{path} is not a verification set ({error})", _FORM) from None
    encoded, issame = lists
    if len(encoded) != 2 * len(issame) or len(issame) == 0:
        raise BctError(
            f"{path} has {len(encoded)} images for {len(issame)} pairs", "write the file again"
        )
    if len(encoded) * size * size * 3 > max(_FREE, _GROWTH * len(data)):
        raise BctError(
            f"{path} is too small for {len(encoded)} images: it repeats them",
            _FORM,
        )
    flags = np.array([_flag(flag, i, path) for i, flag in enumerate(issame)])
    images = np.empty((len(encoded), size, size, 3), np.uint8)
    others, other = 0, None  # of another size
    for i, one in enumerate(encoded):
        try:
            image = decode(_image_bytes(one))
            images[i] = _fit(image, size)
        except ValueError as error:
            raise BctError(
                f"{path}: image {i} is broken ({error})", "write the file again"
            ) from None
        if image.shape[:2] != (size, size):
            others, other = others + 1, other or f"image {i} is {image.shape[1]}x{image.shape[0]}"
    if others:
        say(
            f"{path}: {others} of {len(images)} images are not {size}x{size} ({other}); "
            "they are resized, and cut where they are no square"
        )
    return VerificationSet(path, images, flags, sha256(data, str(size)))


def _flag(flag: Any, i: int, path: Path) -> bool:
    """Also a float, as files of scores have them, and an array of one value."""
    if isinstance(flag, np.ndarray) and flag.size == 1:
        flag = flag.item()
    if not isinstance(flag, bool | int | float | np.generic) or flag not in (0, 1):
        raise BctError(
            f"{path}: flag {i} says neither same nor different",
            "write the file again, its flags as True and False",
        )
    return bool(flag)


def _image_bytes(data: Any) -> bytes:
    if isinstance(data, np.ndarray) and data.dtype.kind in "ui" and data.itemsize == 1:
        if data.ndim == 3:
            raise ValueError("pixels instead of a file's bytes")
        return data.tobytes()
    if isinstance(data, bytearray):
        return bytes(data)
    if not isinstance(data, bytes):
        raise ValueError(f"a {type(data).__name__} instead of a file's bytes")
    return data


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    from skimage.transform import resize

    scale = size / min(image.shape[:2])
    shape = [round(side * scale) for side in image.shape[:2]]
    if max(shape) > _LONGEST * size:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} is no picture of a face")
    image = np.rint(resize(image, shape, preserve_range=True, anti_aliasing=scale < 1))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[top : top + size, left : left + size].astype(np.uint8)


def verify(
    backbone: torch.nn.Module, sets: list[VerificationSet], device: torch.device
) -> dict[str, Accuracy]:
    """Accuracy of one model on each set; every rank has to call it and gets the result."""
    results = {}
    for images in sets:
        e = embed_set(backbone, images, device, batch_size=256, mirror=True)
        results[images.name] = accuracy(e[0::2], e[1::2], images.issame)
    return results
