"""Stored embeddings as a data set: what a transformation of a gallery learns from."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError
from bct.files import sha256_file
from bct.rows import present_rows
from bct.stored.artefacts import open_artefact
from bct.stored.vector_files import open_vectors


class Vectors:
    """The old embeddings of a training set, one row per image, with side information or without.

    Its fingerprint is that of the images, so that the new model's embeddings of the same images
    belong to it. A training takes those that have an old embedding, and one among `new`.

    Args:
        features: an artefact old_embedding; its labels lie beside it, see bct/stored/artefacts.py.
        side: stored side information of the same images, row by row: another artefact, or any
            .npy of floats with as many rows.
        how: the command that makes the features, for error messages.
        new: an artefact new_embedding and how it is made, to see which images have one.

    Raises:
        BctError: missing or damaged files; labels or side information that belong to other images.
    """

    class_names = None
    native, resizable, vectors, chosen = None, False, True, None  # see bct.data.image_set

    def __init__(
        self,
        features: str | Path,
        side: str | Path | None = None,
        how: str = "",
        new: tuple[str | Path, str] | None = None,
    ):
        self.path = Path(features)
        old, made_from = open_artefact(self.path, how)
        both = [(old, made_from)]
        if new is not None:
            both.append(open_artefact(Path(new[0]), new[1]))
        partial = [rows for rows, said in both if said.get("absent")]
        if partial and len({len(rows) for rows, _ in both}) == 1:
            self.chosen = np.flatnonzero(np.all([present_rows(rows) for rows in partial], axis=0))
        self.fingerprint = made_from.get("data")
        name = f"{self.path.stem.removesuffix('feature')}label.npy"
        labels, of_labels = open_artefact(self.path.with_name(name), how)
        keys = ("model", "data")
        if [made_from.get(key) for key in keys] != [of_labels.get(key) for key in keys]:
            raise BctError(
                f"{self.path} and {name} beside it come from different runs",
                f"make both with: {how}" if how else "make both again, in one run",
            )
        self.labels = np.array(labels)
        self.parts, self.side = [old], side
        if side is not None:
            self.parts.append(open_side(side, self.path, len(old), made_from))
        self.width = sum(part.shape[1] for part in self.parts)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    @cached_property
    def side_digest(self) -> str | None:
        """sha256 of the side information's file; the fingerprint says nothing about it."""
        return None if self.side is None else sha256_file(self.side)

    def vector(self, index: int) -> np.ndarray:
        """float32 (W,): the old embedding, then the side information. BctError if not finite."""
        row = np.concatenate([part[index] for part in self.parts], dtype=np.float32)
        if not np.isfinite(row).all():
            raise BctError(f"{self.describe(index)} is not finite", "extract the embeddings again")
        return row

    def describe(self, index: int) -> str:
        return f"{self.path}, row {index}"


def open_side(path: str | Path, features: Path, rows: int, manifest: dict[str, Any]) -> np.ndarray:
    """Memory-maps the side information (n, d_z) that belongs to these embeddings.

    Args:
        features, rows, manifest: the embeddings' file, their number and what their manifest says.

    Raises BctError like open_vectors, and for side information of other images. Whether a row is
    finite is for the caller to see.
    """
    side, of_side = open_vectors(path, rows, finite=False)
    if "data" in of_side and of_side["data"] != manifest.get("data", of_side["data"]):
        raise BctError(
            f"side information {path} was made from other images than {features}",
            "extract both from the same data",
        )
    return side
