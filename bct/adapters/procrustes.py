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
from bct.rows import row_blocks, unit_rows
from bct.stored.vector_files import first_not_finite


class Procrustes(Adapter):
    """float (n, d_s) -> float32 (n, d_t), see above.

    Args:
        unit: for the fit divide each row by its length (a row of zeros stays), so that every item
            counts alike, as in a comparison by cosine. False: rows as they are. transform never
            does: a map of a row c a is c times that of a.

    matrix: W, float32 (d_s, d_t), after fit. Memory does not depend on n.
    """

    def __init__(self, unit: bool = True):
        self.unit = unit

    def fit(self, source: np.ndarray, target: np.ndarray) -> "Procrustes":
        if np.ndim(source) != 2 or np.ndim(target) != 2 or not 0 < len(source) == len(target):
            raise BctError(
                f"the rows to fit are {np.shape(source)} and {np.shape(target)}",
                "give both models' embeddings of the same items, (n, d_s) and (n, d_t)",
            )
        product = np.zeros((source.shape[1], target.shape[1]))
        for (rows, a), (_, b) in zip(row_blocks(source), row_blocks(target), strict=True):
            a, b = (self._rows(x.numpy(), rows.start, side) for x, side in
                    ((a, "source"), (b, "target")))  # fmt: skip
            product += a.T @ b
        u, _, v = np.linalg.svd(product, full_matrices=False)
        self.restore({"matrix": (u @ v).astype(np.float32)})
        self.made_from = {"rows": len(source)}
        return self

    def transform(self, source: np.ndarray) -> np.ndarray:
        self.check_source(source)
        out = np.empty((len(source), self.target_width), np.float32)
        for rows, x in row_blocks(source):
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

    def _rows(self, x: np.ndarray, start: int, side: str) -> np.ndarray:
        if (row := first_not_finite(x)) is not None:
            raise BctError(
                f"row {start + row} of the {side} is not finite",
                "compute that item's embedding again",
            )
        x = x.astype(np.float64)
        return unit_rows(x) if self.unit else x
