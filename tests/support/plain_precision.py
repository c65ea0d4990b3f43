"""Average precisions as they are defined, query by query over a whole ranking."""

import numpy as np

from bct.metrics.relevance import ByItem, Relevance, by_query


def places(scores: np.ndarray, relevance: Relevance) -> list[np.ndarray]:
    """For each query the places, from 0, of its positives among what it does not ignore.

    Args:
        scores: (Q, G).
    """
    found = []
    for query, row in enumerate(scores):
        lists: ByItem = by_query(relevance)(np.array([query]))
        order = np.argsort(-row, kind="stable")
        order = order[~np.isin(order, lists.ignored.rows)]
        found.append(np.flatnonzero(np.isin(order, lists.positive.rows)))
    return found


def trapezoid(places: np.ndarray) -> float:
    """The area by trapezoids under precision at each positive and just before it."""
    if not len(places):
        return np.nan
    k = np.arange(len(places))
    before = np.where(places == 0, 1, k / np.maximum(places, 1))
    return float(((before + (k + 1) / (places + 1)) / 2).sum() / len(places))


def first100(places: np.ndarray) -> float:
    """Mean precision at the positives among the first 100, of at most 100 that there are."""
    seen = places[places < 100]
    if not len(places):
        return np.nan
    return float(((np.arange(len(seen)) + 1) / (seen + 1)).sum() / min(len(places), 100))


def steps(places: np.ndarray) -> float:
    """Mean precision at the positives."""
    return float(((np.arange(len(places)) + 1) / (places + 1)).mean()) if len(places) else np.nan


def cosines(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float64 (Q, G)."""
    query, gallery = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        for x in (query, gallery)
    )
    return query @ gallery.T
