"""Metrics of a chain of model versions that share one gallery space.

M[i, j] is the quality of queries by version i against a gallery by version j; larger is better,
versions are numbered 1..T in the formulas and by row in the array. Only the lower triangle with
the diagonal is used: what lies above it (old queries, newer gallery) may be NaN.

Every function takes float (T, T), T >= 2, and raises BctError for another shape, for a single
version, and for an entry that it needs and that is not finite.
"""

import numpy as np

from bct.errors import BctError


def average_compatibility(matrix: np.ndarray) -> float:
    """AC = 2 / (T (T - 1)) #{(i, j): j < i, M[i, j] > M[j, j]}, in 0..1.

    The share of pairs of versions of which the newer is compatible with the older (CoReS, Biondi et
    al., TPAMI 2023). The criterion is strict like compatibility.compatible, and as the code of
    IAM-CL2R (Biondi et al., CVPR 2024) counts; those of CoReS and CL2R let equality pass.
    """
    newer, older = np.tril_indices(_versions(matrix), -1)
    cross, old = _entries(matrix, newer, older), _entries(matrix, older, older)
    return float(np.mean(cross > old))


def average_quality(matrix: np.ndarray) -> float:
    """AM = 2 / (T (T + 1)) sum over j <= i of M[i, j], in the unit of M.

    CoReS' average accuracy. Its code averages the entries above 0 instead; here a test that fails
    altogether counts.
    """
    return float(_entries(matrix, *np.tril_indices(_versions(matrix))).mean())


def backward_transfer(matrix: np.ndarray) -> float:
    """BC = 1 / (T - 1) sum over i < T of M[T, i] - M[i, i], in the unit of M.

    What queries by the last version gain on every earlier gallery over the version that made it.
    Above 0 is good. Source: backward compatibility in CL2R, Biondi et al., TOMM 2023.
    """
    i = np.arange(_versions(matrix) - 1)
    return float(np.mean(_entries(matrix, np.full_like(i, len(i)), i) - _entries(matrix, i, i)))


def forward_transfer(matrix: np.ndarray) -> float:
    """FC = 1 / (T - 1) sum over i > 1 of M[i, i - 1] - M[i, i], in the unit of M.

    What it costs to leave the gallery as it is at each update instead of embedding it again: mostly
    negative, 0 when nothing is lost. Source as backward_transfer: forward compatibility.
    """
    i = np.arange(1, _versions(matrix))
    return float(np.mean(_entries(matrix, i, i - 1) - _entries(matrix, i, i)))


def _versions(matrix: np.ndarray) -> int:
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise BctError(
            f"the matrix of a chain of versions has shape {shape}",
            "give (T, T), one row and one column per version, for at least two versions",
        )
    return shape[0]


def _entries(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Chosen entries, float64 (n,)."""
    values = np.asarray(matrix, np.float64)[rows, columns]
    missing = np.flatnonzero(~np.isfinite(values))
    if len(missing):
        i, j = rows[missing[0]], columns[missing[0]]
        raise BctError(
            f"M[{i}, {j}], version {i + 1} on the gallery of version {j + 1}, is not a number",
            "measure it: the whole lower triangle with the diagonal is needed",
        )
    return values
