"""Float32 scores that are too near to a positive's to tell which is higher, made again in float64.

A float32 score of D numbers is off by some 1e-8 sqrt(D). Where another item comes nearer to a
positive than that, an order by float32 is chance: among 6,322 items of few dimensions that is
enough to move an average precision by 1e-6. Where descriptors tell items apart there are few.
"""

import numpy as np

from bct.metrics.blocks import count_at_least
from bct.metrics.products import Products

_NEAR = 2.0**-22  # times sqrt(D), of unit vectors: twice what two float32 scores may be off


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
    window = np.float32(_NEAR) * np.sqrt(np.float32(products.query.shape[1]))
    window = window * products.lengths[queries][:, None]
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
        at = heights[row, near[row]]
        after = np.searchsorted(at, scores[row])
        distance = np.minimum(
            np.abs(scores[row] - at[np.maximum(after - 1, 0)]),
            np.abs(scores[row] - at[np.minimum(after, len(at) - 1)]),
        )
        items = np.flatnonzero(distance <= window[row])
        out[row, items] = products.exact(queries[row], items)
    return out
