"""Float32 scores that are too near to a positive's to tell which is higher, made again in float64.

A sum of D float32 numbers that comes to s is off by some u (s sqrt(D) / 3 + 1), u = 2^-24. Where
another item comes nearer to a positive than that, an order by float32 is chance: among 6,322 items
of few dimensions that is enough to move an average precision by 1e-6. Where descriptors tell items
apart there are few.
"""

from collections.abc import Callable

import numpy as np

from bct.metrics.relevance import Rows

_NEAR = np.float32(2.0**-23)  # two scores, each off by three times as much as most of them
_FEW = 8  # heights with each of which a row is compared sooner than searched


def heights_of(scores: np.ndarray, rows: Rows) -> np.ndarray:
    """Each query's scores with its rows, ascending, then inf: float (B, P)."""
    column, there = rows.padded()
    out = np.take_along_axis(scores, column, axis=1)
    out[~there] = np.inf
    out.sort(axis=1)
    return out


def settled(
    scores: np.ndarray,
    ranked: np.ndarray,
    heights: np.ndarray,
    counts: np.ndarray,
    positive: Rows,
    lengths: np.ndarray,
    dimensions: int,
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The scores, float64 where there are near ties: those made again. Mends the counts.

    Args:
        scores: float32 (B, G), of cosines times the queries' lengths, float32 (B,).
        ranked: the same, each row ascending.
        heights: float32 (B, P), heights_of the positives; counts: int (B, P), how many of a row's
            scores are >= each, mended in place.
        exact: (rows, items), each int (n,) -> the scores of these pairs, float64 (n,).
    """
    there = np.isfinite(heights)
    size = np.abs(np.where(there, heights, 0))
    window = _NEAR * (np.float32(dimensions**0.5) * size + 2 * lengths[:, None])
    last = ranked.shape[1] - 1
    at = np.minimum(last + 1 - counts, last)  # where a row has the height
    below, above = (
        np.abs(np.take_along_axis(ranked, beside, axis=1) - heights) <= window
        for beside in (np.maximum(at - 1, 0), np.minimum(at + 1, last))
    )
    near = there & (below & (at > 0) | above & (at < last))
    rows = np.flatnonzero(near.any(axis=1))
    if not len(rows):
        return scores
    items = [_within(scores[row], heights[row, near[row]], window[row, near[row]]) for row in rows]
    owner, item = np.repeat(rows, list(map(len, items))), np.concatenate(items)
    out = scores.astype(np.float64)
    out[owner, item] = exact(owner, item)
    heights = heights_of(out, positive)
    for row, of_row in zip(rows, items, strict=True):
        before, after = (np.sort(x[row, of_row]) for x in (scores, out))
        counts[row] = (
            _as_high(ranked[row], heights[row])
            - _as_high(before, heights[row])
            + _as_high(after, heights[row])
        )
    return out


def _within(scores: np.ndarray, heights: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Which scores are nearer to a height, ascending, than its window, int (k,)."""
    found = np.zeros(len(scores), bool)
    if len(heights) <= _FEW:
        for height, near in zip(heights, window, strict=True):
            found |= np.abs(scores - height) <= near
        return np.flatnonzero(found)
    after = np.searchsorted(heights, scores)
    for which in (np.maximum(after - 1, 0), np.minimum(after, len(heights) - 1)):
        found |= np.abs(scores - heights[which]) <= window[which]
    return np.flatnonzero(found)


def _as_high(scores: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """How many scores, ascending, are >= each height."""
    return len(scores) - np.searchsorted(scores, heights)
