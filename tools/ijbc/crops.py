"""The images of a protocol, aligned, as a data set."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.image_set import ImageSet
from bct.data.images import SIZE, decode
from bct.errors import BctError
from bct.files import sha256
from tools.ijbc.align import align, similarity_to_template

_POINT = 1.0  # pixels


def has_face(landmarks: np.ndarray) -> np.ndarray:
    """Which of (N, 5, 2) landmarks are a face's, bool (N,): finite, and not one point."""
    finite = np.isfinite(landmarks).all((1, 2))
    points = np.where(finite[:, None, None], landmarks, 0).astype(np.float64)
    return finite & (np.ptp(points, axis=1).max(1) > _POINT)


class LooseCrops(ImageSet):
    """loose_crop/*.jpg, each warped to 112 x 112 by its five landmarks.

    Args:
        root: the folder IJBC or IJBB.
        meta: the file that lists the images, a row each, for messages.
        names: N file names. landmarks: float32 (N, 5, 2).

    Attributes:
        found: bool (N,), where a face is. A face that was not found has landmarks of 0 or -1, which
            are one point, or of NaN; its picture is not looked at, it is black.
    """

    native, mirror = SIZE, True
    num_classes = 1
    recipe = "align5-112-v1"

    def __init__(self, root: Path, meta: Path, names: list[str], landmarks: np.ndarray):
        self.path, self.meta, self.names, self.landmarks = root, meta, names, landmarks
        self.labels = np.zeros(len(names), np.int64)
        self.found = has_face(landmarks)
        self.matrices = np.zeros((len(names), 3, 3))
        self.matrices[self.found] = similarity_to_template(landmarks[self.found].astype(np.float64))

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> Path:
        """An image's file. Raises BctError if links lead from loose_crop to outside of it."""
        folder = self.path / "loose_crop"
        file = folder / self.names[index]
        if not os.path.realpath(file).startswith(self._crops + os.sep):
            raise BctError(
                f"{self.meta}, line {index + 1}: {self.names[index]} is a link out of {folder}",
                "restore the file",
            )
        return file

    def load(self, index: int, out: np.ndarray) -> int:
        out[:] = 0
        if not self.found[index]:
            return 0
        file = self.file(index)
        try:
            picture = decode(file.read_bytes())
            out[:] = align(picture, self.matrices[index])
        except FileNotFoundError:
            raise _missing(file) from None
        except ValueError as error:
            raise BctError(f"{file} is broken ({error})", "restore the file") from None
        if picture.any() and not out.any():
            raise BctError(
                f"{self.meta}, line {index + 1}: its landmarks lie outside of {self.names[index]}, "
                f"which has {picture.shape[1]}x{picture.shape[0]} pixels",
                "give landmarks in pixels of the very files in loose_crop",
            )
        return 0

    def image(self, index: int) -> np.ndarray:
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        self.load(index, out)
        return out

    def describe(self, index: int) -> str:
        return str(self.file(index))

    @cached_property
    def _crops(self) -> str:
        return os.path.realpath(self.path / "loose_crop")  # itself it may well be a link

    @cached_property
    def fingerprint(self) -> str:
        """Of what embeddings depend on: names, landmarks and 256 sampled files' sizes."""
        sample = np.unique(np.linspace(0, len(self.names) - 1, 256).astype(np.int64))
        sizes = [str(_size(self.file(i))) for i in sample]
        return sha256(*self.names, self.landmarks.tobytes(), *sizes)


def _size(file: Path) -> int:
    if not file.is_file():
        raise _missing(file)
    return file.stat().st_size


def _missing(file: Path) -> BctError:
    return BctError(f"{file} does not exist", "the meta files list it: restore loose_crop/")
