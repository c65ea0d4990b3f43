"""Alpha query expansion: a query takes up what it has found, and searches again.

    q' = q + sum over the n best g of  max(cos(q, g), 0)^alpha g,     all of unit length, q' too

Radenovic, Tolias and Chum, Fine-tuning CNN image retrieval with no human annotation, TPAMI 2019;
alpha = 0 is the average query expansion of Chum et al., ICCV 2007. Queries of a new model that
expand by rows of an old gallery move towards the old space.
"""

import numpy as np

from bct.errors import BctError
from bct.metrics.top_k import top_k
from bct.rows import unit_rows

_PART = 1 << 8  # queries whose neighbours are held together


def expanded(query: np.ndarray, gallery: np.ndarray, n: int = 50, alpha: float = 3.0) -> np.ndarray:
    """The queries after one expansion, unit vectors, float32 (Q, D).

    Args:
        query: float (Q, D); gallery: float (G, D), also a memory-mapped file.
        n: how many neighbours are taken up, at most G; alpha: >= 0.

    Raises BctError for an n or alpha that can't be, and what top_k refuses.
    """
    if n < 1 or not (0 <= alpha < np.inf):
        raise BctError(
            f"queries are expanded by {n} neighbours with alpha {alpha}",
            "take at least one neighbour, and an alpha of 0 or more",
        )
    rows, scores = top_k(query, gallery, n)
    weights = np.maximum(scores, 0) ** alpha * (scores > 0)
    out = unit_rows(query)
    for start in range(0, len(query), _PART):
        part = slice(start, start + _PART)
        named, at = np.unique(rows[part], return_inverse=True)
        neighbours = unit_rows(np.asarray(gallery[named]))
        matrix = np.zeros((len(rows[part]), len(named)), np.float32)
        np.put_along_axis(matrix, at.reshape(rows[part].shape), weights[part], axis=1)
        out[part] += matrix @ neighbours
    return unit_rows(out)
