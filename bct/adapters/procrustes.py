"""Orthogonal Procrustes: a rotation or reflection of one space into another.

    W = U V'   where   A'B = U S V'  (singular value decomposition),   h(a) = a W

A (n, d_s) and B (n, d_t) are the same items' rows in the two spaces. W (d_s, d_t) has orthonormal
columns where d_s >= d_t and orthonormal rows where d_s <= d_t. Among these it maximises
sum_i <a_i W, b_i>. For d_s <= d_t that is the least squares solution, min |A W - B|, as then
|a W| = |a|, and the mapped rows have the angles that the rows had.

Source: Schoenemann, A generalized solution of the orthogonal Procrustes problem, Psychometrika
31(1), 1966; of matrices that are not square: Gower and Dijksterhuis, Procrustes Problems, 2004.
"""

import numpy as np

from bct.adapters.base import Adapter
from bct.errors import BctError
from bct.rows import BLOCK, check_rows, read_stored, refuse_not_finite, row_blocks, unit_rows


class Procrustes(Adapter):
    """float (n, d_s) -> float32 (n, d_t), see above.

    Args:
        unit: for the fit divide each row by its length, so that every item counts alike, as in a
            comparison by cosine. False: rows as they are. transform never does: a map of a row c a
            is c times that of a.

    matrix: W, float32 (d_s, d_t), after fit. Memory does not depend on n. An item that has a row of
    zeros in either space says nothing of the map and is left out; made_from counts both kinds.
    """

    def __init__(self, unit: bool = True):
        self.unit = unit

    def fit(self, source: np.ndarray, target: np.ndarray) -> "Procrustes":
        if np.ndim(source) != 2 or np.ndim(target) != 2 or not 0 < len(source) == len(target):
            raise BctError(
                f"the rows to fit are {np.shape(source)} and {np.shape(target)}",
                "give both models' embeddings of the same items, (n, d_s) and (n, d_t)",
            )
        sides = {"the source": source, "the target": target}
        zeros = [check_rows(rows, whose, alike=False) for whose, rows in sides.items()]
        without = np.unique(np.concatenate(zeros))
        if len(without) == len(source):
            raise BctError(
                f"each of the {len(source)} rows to fit is zeros in one of the spaces",
                "give embeddings of the same items by both models",
            )
        product = np.zeros((source.shape[1], target.shape[1]))
        for start in range(0, len(source), BLOCK):
            rows = slice(start, start + BLOCK)
            a, b = (self._rows(x, rows) for x in (source, target))
            product += a.T @ b  # a row of zeros adds nothing
        if not np.isfinite(product).all():
            raise BctError("the rows to fit are too long for float64", "fit with unit=True")
        u, _, v = np.linalg.svd(product, full_matrices=False)
        self.restore({"matrix": (u @ v).astype(np.float32)})
        self.made_from = {"rows": len(source) - len(without), "rows_of_zeros": len(without)}
        return self

    def transform(self, source: np.ndarray) -> np.ndarray:
        self.check_source(source)
        out = np.empty((len(source), self.target_width), np.float32)
        for rows, x in row_blocks(source):
            refuse_not_finite(x, name=lambda row, start=rows.start: start + row)
            np.matmul(x.numpy(), self.matrix, out=out[rows])
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        return {"matrix": self.matrix}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        matrix = arrays["matrix"]
        if matrix.dtype.kind != "f" or not np.isfinite(matrix).all() or not matrix.size:
            raise ValueError("its matrix is no matrix of numbers")
        self.matrix = np.asarray(matrix, np.float32)
        self.source_width, self.target_width = self.matrix.shape

    def _rows(self, features: np.ndarray, rows: slice) -> np.ndarray:
        """Some rows for the fit, float64 (B, D)."""
        x = read_stored(features, rows)
        return unit_rows(x).astype(np.float64) if self.unit else x.astype(np.float64)
