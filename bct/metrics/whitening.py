"""PCA whitening (Jegou and Chum, ECCV 2012): all directions of a training set vary alike."""

from typing import NamedTuple

import numpy as np

from bct.errors import BctError
from bct.rows import unit_rows

_BLOCK = 1 << 13  # rows
_FLAT = 1e-9  # of the largest variance: directions with less are rounding


class Whitening(NamedTuple):
    """mean: float64 (D,); matrix: float64 (D, R), R <= D directions that vary, the largest first,
    each divided by its deviation."""

    mean: np.ndarray
    matrix: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """n((n(x) - mean) matrix), n(x) = x / |x|: float32 (n, R)."""
        out = np.empty((len(rows), self.matrix.shape[1]), np.float32)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            out[part] = unit_rows((unit_rows(np.asarray(rows[part])) - self.mean) @ self.matrix)
        return out


def fit_whitening(rows: np.ndarray) -> Whitening:
    """Of the unit vectors of a training set, float (n, D), also a memory-mapped file.

    Raises BctError for rows that are all alike.
    """
    mean, second = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
    for start in range(0, len(rows), _BLOCK):
        x = unit_rows(np.asarray(rows[start : start + _BLOCK])).astype(np.float64)
        mean += x.sum(0)
        second += x.T @ x
    mean /= len(rows)
    variance, directions = np.linalg.eigh(second / len(rows) - np.outer(mean, mean))
    variance, directions = variance[::-1], directions[:, ::-1]
    kept = variance > max(_FLAT * variance[0], np.finfo(np.float64).eps)
    if not kept.any():
        raise BctError(
            f"the {len(rows)} rows to learn a whitening of are all alike",
            "give the embeddings of a training set",
        )
    return Whitening(mean, directions[:, kept] / np.sqrt(variance[kept]))
