"""The images of a protocol, aligned, as a data set."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.image_set import ImageSet
from bct.data.images import decode
from bct.data.views import View
from bct.errors import BctError
from bct.files import sha256
from tools.ijbc.align import align, similarity_to_template


class LooseCrops(ImageSet):
    """loose_crop/*.jpg, each warped to 112 x 112 by its five landmarks.

    Args:
        root: the folder IJBC or IJBB.
        meta: the file that lists the images, a row each, for messages.
        names: N file names. landmarks: float32 (N, 5, 2).
    """

    resizable, mirror, view = False, True, View()
    num_classes = 1
    recipe = "align5-112-v1"

    def __init__(self, root: Path, meta: Path, names: list[str], landmarks: np.ndarray):
        self.path, self.meta, self.names, self.landmarks = root, meta, names, landmarks
        self.labels = np.zeros(len(names), np.int64)
        self.matrices = similarity_to_template(landmarks.astype(np.float64))

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
        file = self.file(index)
        try:
            out[:] = align(decode(file.read_bytes()), self.matrices[index])
        except FileNotFoundError:
            raise _missing(file) from None
        except ValueError as error:
            raise BctError(f"{file} is broken ({error})", "restore the file") from None
        return 0

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
