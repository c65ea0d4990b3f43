"""The rows of an array on disk or in memory, block by block."""

import mmap
from collections.abc import Iterator

import numpy as np
import torch

from bct.errors import BctError

BLOCK = 1 << 13  # rows


def refuse_not_finite(values: np.ndarray | torch.Tensor) -> None:
    """Raises BctError for embeddings, or what was computed from them, that are not numbers."""
    finite = torch.isfinite(values) if torch.is_tensor(values) else np.isfinite(values)
    if not finite.all():
        raise BctError(
            "the embeddings hold NaN or inf", "check the weights and the precision (--amp off)"
        )


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Each row (n, D) divided by its length; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def row_blocks(features: np.ndarray, block: int = BLOCK) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice, float32 (block, D)) over the rows of an array.

    A memory-mapped file is read, not mapped, so that its pages do not count as this process's
    memory; reading is also faster.
    """
    for start in range(0, len(features), block):
        rows = slice(start, min(start + block, len(features)))
        x = np.empty((rows.stop - start, features.shape[1]), np.float32)
        yield rows, torch.from_numpy(read_rows(features, rows, x))


def read_rows(features: np.ndarray, rows: slice, x: np.ndarray) -> np.ndarray:
    """Copies some rows to x, float32 (B, D), and returns it."""
    # a part of a mapped array keeps the offset of the whole; what changed a private one is no file
    whole_file = isinstance(features, np.memmap) and isinstance(features.base, mmap.mmap)
    if not (whole_file and features.flags.c_contiguous and features.mode != "c"):
        x[:] = features[rows]
        return x
    stored = x if features.dtype == x.dtype else np.empty(x.shape, features.dtype)
    with open(features.filename, "rb", buffering=0) as file:
        file.seek(features.offset + rows.start * features.shape[1] * features.itemsize)
        if file.readinto(stored) != stored.nbytes:
            raise BctError(f"{features.filename} is shorter than it was", "load it again")
    if stored is not x:
        x[:] = stored
    return x
