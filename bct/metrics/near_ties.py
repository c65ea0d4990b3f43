"""Float32 scores that are too near to a positive's to tell which is higher, made again in float64.

A sum of D float32 numbers that comes to s is off by some u (s sqrt(D) / 3 + 1), u = 2^-24. Where
another item comes nearer to a positive than that, an order by float32 is chance: among 6,322 items
of few dimensions that is enough to move an average precision by 1e-6. Where descriptors tell items
apart there are few.
"""

import numpy as np

from bct.metrics.blocks import count_at_least
from bct.metrics.products import Products

_NEAR = np.float32(2.0**-23)  # two scores, each off by three times as much as most of them


def settled(
    scores: np.ndarray, heights: np.ndarray, queries: np.ndarray, products: Products
) -> np.ndarray:
    """The scores, float32 (B, G), with those near a height exact: float64, if there are any.

    Args:
        heights: float32 (B, P), scores of positives, ascending, then inf. queries: int (B,), the
            rows of products' queries. By l2 nothing is made again.
    """
    if not (products.cosine and heights.shape[1]):
        return scores
    there = np.where(np.isfinite(heights), np.abs(heights), 0)
    root = np.sqrt(np.float32(products.query.shape[1]))
    window = _NEAR * (root * there + 2 * products.lengths[queries][:, None])
    around = count_at_least(
        scores.copy(), np.concatenate([heights - window, heights + window], axis=1)
    )
    low, high = np.split(around, 2, axis=1)
    near = low - high > 1  # another than the positive itself
    rows = np.flatnonzero(near.any(axis=1))
    if not len(rows):
        return scores
    out = scores.astype(np.float64)
    for row in rows:
        at, reach = heights[row, near[row]], window[row, near[row]]
        after = np.searchsorted(at, scores[row])
        found = np.zeros(len(after), bool)
        for which in (np.maximum(after - 1, 0), np.minimum(after, len(at) - 1)):
            found |= np.abs(scores[row] - at[which]) <= reach[which]
        items = np.flatnonzero(found)
        out[row, items] = products.exact(queries[row], items)
    return out
