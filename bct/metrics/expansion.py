"""Alpha query expansion (Radenovic et al., TPAMI 2019): a query asks with its best items, too."""

import numpy as np

from bct.errors import BctError
from bct.metrics.top_k import top_k
from bct.rows import unit_rows

_BLOCK = 1 << 22  # numbers of gallery rows that are held at once


def expanded(query: np.ndarray, gallery: np.ndarray, alpha: float = 3.0, k: int = 10) -> np.ndarray:
    """q + sum over its k best items x of max(cos(q, x), 0)^alpha x, all of unit length: (Q, D).

    float32, of unit length again.

    Args:
        query: float (Q, D); gallery: float (G, D), also a memory-mapped file.
        alpha: 0 takes all k alike (average query expansion). k: no more than there are items.

    Raises BctError for an alpha below 0 or a k below 1.
    """
    if not alpha >= 0:
        raise BctError(f"alpha is {alpha}", "give one from 0, such as 3")
    rows, scores = top_k(query, gallery, k)
    out = unit_rows(np.asarray(query)).astype(np.float64)
    weight = np.where(scores > 0, np.maximum(scores, 0).astype(np.float64) ** alpha, 0)
    step = max(1, _BLOCK // (rows.shape[1] * query.shape[1]))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        items = np.asarray(gallery[rows[part].ravel()])
        items = unit_rows(items).reshape(*rows[part].shape, -1)  # (B, k, D)
        out[part] += np.einsum("bk,bkd->bd", weight[part], items)
    return unit_rows(out)
