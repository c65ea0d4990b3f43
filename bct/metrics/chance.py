"""What would come out by chance: of a search, and of two models that have nothing in common."""

import numpy as np

from bct.metrics.average_precision import FIRST
from bct.rows import unit_rows

_ITEMS, _OTHERS = 10_000, 8  # looked at: items, and how many others each is compared with


def chance_ap(positives: np.ndarray, items: np.ndarray | int, way: str = "steps") -> np.ndarray:
    """Expected average precision of items in random order, float64 (Q,).

        (P - 1) / (N - 1) + (N - P) / (N (N - 1)) H_N,    H_N = 1 + 1/2 + ... + 1/N

    for P positives among N items: place k holds a positive with probability P / N, and then
    1 + (k - 1) (P - 1) / (N - 1) of the first k are positive; the sum of this over k, divided by P.
    "trapezoid" is the mean of that and of P / N, "first100" a sum over the first 100 k, divided by
    min(P, 100).

    Args:
        positives: int (Q,), P of each query, at least 1; items: N of each, or of all.
        way: see bct.metrics.average_precision.
    """
    p, n = np.broadcast_arrays(np.asarray(positives, np.float64), np.asarray(items, np.int64))
    sizes, of = np.unique(n, return_inverse=True)
    seen = np.minimum(sizes, FIRST) if way == "first100" else sizes
    harmonic = np.array([np.sum(1 / np.arange(1, size + 1)) for size in seen])[of].reshape(n.shape)
    seen = seen[of].reshape(n.shape)
    others = np.maximum(n - 1, 1)  # a single item is a positive: 1
    steps = seen / n * (p - 1) / others + (n - p) / (n * others) * harmonic
    steps = np.where(n == 1, 1.0, steps)
    if way == "first100":
        return steps * p / np.minimum(p, FIRST)
    return (steps + p / n) / 2 if way == "trapezoid" else steps


def alike_by_item(old: np.ndarray, new: np.ndarray) -> float:
    """P(cos(old_i, new_i) > cos(old_i, new_j)), ties counting one half: what ties the two spaces.

    1: each item is nearest to itself, as between compatible models. About 0.5 or less: an item is
    no nearer to itself than to another one, as between models trained apart, or after a rotation.
    No labels are needed. Of many items 10,000 are looked at, evenly spaced, each with 8 others.

    Args:
        old, new: float (N, D), both models' embeddings of the same items.

    Returns:
        In 0..1; 0.5 for a single item.
    """
    chosen = np.unique(np.linspace(0, len(old) - 1, min(len(old), _ITEMS)).astype(np.int64))
    a, b, n = unit_rows(old[chosen]), unit_rows(new[chosen]), len(chosen)
    own = np.einsum("nd,nd->n", a, b)
    shifts = np.unique(np.arange(1, _OTHERS + 1) * n // (_OTHERS + 1))
    shares = []
    for shift in shifts[shifts > 0]:
        other = np.einsum("nd,nd->n", a, np.roll(b, -shift, axis=0))
        shares.append(np.mean(own > other) + np.mean(own == other) / 2)
    return float(np.mean(shares)) if shares else 0.5
