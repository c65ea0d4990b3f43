"""PCA whitening, fitted on given rows, mostly those of the training set.

    x' = unit((unit(x) - mean) P),    P = the first eigenvectors of the covariance, each divided by
                                          the root of its eigenvalue

Jegou and Chum, Negative evidences and co-occurrences in image retrieval, ECCV 2012. One whitening
serves both sides of a search: a gallery whitened by another than its queries is incompatible.
"""

from typing import NamedTuple

import numpy as np

from bct.errors import BctError
from bct.rows import BLOCK, unit_blocks, unit_rows

_FLAT = 1e-12  # an eigenvalue that is so small beside the largest is rounding


class Whitening(NamedTuple):
    """mean: float64 (D,); projection: float64 (D, W)."""

    mean: np.ndarray
    projection: np.ndarray


def fit_whitening(features: np.ndarray, dimensions: int | None = None) -> Whitening:
    """From rows of any length, read in blocks.

    Args:
        features: float (N, D), also a memory-mapped file; rows of zeros are left out.
        dimensions: W, how many are kept; None: all in which the rows vary.

    Raises BctError for more dimensions than the rows vary in, and rows that are not finite.
    """
    width = features.shape[1]
    total, squares, number = np.zeros(width), np.zeros((width, width)), 0
    for _, rows in unit_blocks(features):
        x = rows.double().numpy()
        total += x.sum(axis=0)
        squares += x.T @ x
        number += int(x.any(axis=1).sum())
    mean = total / max(number, 1)
    values, vectors = np.linalg.eigh(squares / max(number, 1) - np.outer(mean, mean))
    values, vectors = values[::-1], vectors[:, ::-1]
    varied = int((values > _FLAT * max(values[0], 0)).sum()) if number > 1 else 0
    varied = min(varied, number - 1)
    kept = varied if dimensions is None else dimensions
    if not 1 <= kept <= varied:
        raise BctError(
            f"{number} rows vary in {max(varied, 0)} dimensions, {kept} are to be kept",
            "fit the whitening on more rows, or keep fewer dimensions, at least one",
        )
    vectors = vectors[:, :kept]
    first = np.abs(vectors).argmax(axis=0)  # an eigenvector's sign is anybody's choice
    vectors = vectors * np.sign(vectors[first, np.arange(kept)])
    return Whitening(mean, vectors / np.sqrt(values[:kept]))


def whitened(features: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Rows after whitening, unit vectors, float32 (N, W); a row of zeros stays one.

    Raises BctError for rows of another width, or that are not finite.
    """
    width = len(whitening.mean)
    if features.ndim != 2 or features.shape[1] != width:
        raise BctError(
            f"the embeddings are {features.shape}, the whitening is for {width} dimensions",
            "whiten with what was fitted on embeddings of this model",
        )
    out = np.empty((len(features), whitening.projection.shape[1]), np.float32)
    for rows, block in unit_blocks(features, block=BLOCK):
        x = block.double().numpy()
        there = x.any(axis=1)[:, None]
        out[rows] = unit_rows((x - whitening.mean) @ whitening.projection * there)
    return out
