"""Retrieval: CMC top-k and mean average precision, exact, without ranking the gallery.

bct/metrics/ranking.py has the definitions and the computation, bct/metrics/relevance.py says what a
query ought to find; here are its inputs, checked, and its figures. Other ways to reckon an average
precision than that of the steps are in bct/metrics/average_precision.py.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from bct.errors import BctError
from bct.metrics.average_precision import FIRST, average_precision, check_way, precision_at
from bct.metrics.blocks import SCORES
from bct.metrics.positions import Positions, positions
from bct.metrics.ranking import by_item, by_pairs, by_rows
from bct.metrics.relevance import (
    ByClass,
    ByItem,
    Relevance,
    by_query,
    check,
    numbered,
    unopposed,
)
from bct.metrics.top_k import first_positions
from bct.streams import generator

METRICS = ("cosine", "l2")
_PART = 1 << 13  # queries


class Retrieval(NamedTuple):
    """Of Q queries, those without a positive in the gallery are counted apart, and so are those to
    which all of it is positive: they can't be wrong, whatever the model.

    top: share of queries with a positive among the best k, per k.
    mean_ap: mean average precision.
    ap: float64 (Q,), average precision of each query, NaN where it is counted apart.
    rank: int64 (Q,), rank of the first positive, from 1; 0 without a positive, -1 if unopposed;
        101 where way="first100" and there is none among the first 100.
    queries, without, unopposed: how many have positives and negatives, no positive, no negative;
        only the first are in the means.
    precision: precision at k of each query, float64 (Q,), per k, see precision_at; of the ways
        "trapezoid" and "first100", else empty.
    """

    top: dict[int, float]
    mean_ap: float
    ap: np.ndarray
    rank: np.ndarray
    queries: int
    without: int
    unopposed: int
    precision: dict[int, np.ndarray] = {}  # noqa: RUF012 - nobody writes to it

    @property
    def mean_precision(self) -> dict[int, float]:
        """Mean precision at each k, of the queries that are in the means."""
        return {k: float(of_k[self.rank > 0].mean()) for k, of_k in self.precision.items()}


def retrieve(
    query: np.ndarray,
    gallery: np.ndarray,
    relevance: Relevance,
    metric: str = "cosine",
    ks: tuple[int, ...] = (1, 5),
    way: str = "steps",
) -> Retrieval:
    """Queries against a gallery, whose embeddings may be another model's.

    Args:
        query: float (Q, D); gallery: float (G, D). In leave-one-out the same array for both takes
            half of the time.
        relevance: ByClass or ByItem of these Q queries and G items. Ignored items are taken out of
            a query's ranking before anything is counted.
        metric: "cosine" scores by the product of the unit vectors (0 for a zero vector), "l2" by
            -|q - g|^2 / 2, computed in float32 as q.g - |q|^2 / 2 - |g|^2 / 2.
        ks: which top-k.
        way: how an average precision is reckoned, see bct.metrics.average_precision. "first100"
            looks at nothing beyond the first 100 items.

    Raises:
        BctError: shapes that do not fit; a relevance of other items; embeddings that are not
            numbers; an unknown metric or way; a k below 1, or above 100 for "first100"; no query
            with a positive and a negative.
    """
    if way != "steps":
        return retrieve_readings(query, gallery, {"": relevance}, metric, ks, way)[""]
    check_searched(query, gallery, relevance, metric, ks)
    apart = unopposed(relevance, len(gallery))
    return summary(*_ranked(query, gallery, relevance, metric), ks, apart)


def retrieve_readings(
    query: np.ndarray,
    gallery: np.ndarray,
    readings: Mapping[str, Relevance],
    metric: str = "cosine",
    ks: tuple[int, ...] = (1, 5),
    way: str = "steps",
) -> dict[str, Retrieval]:
    """What retrieve gives for each reading of what is relevant, from one pass over the scores.

    A gallery may be a memory-mapped file: of all ways but "steps", which reads each alone, it is
    read block by block.

    Args:
        readings: by name; the others as for retrieve, which raises the same.
    """
    check_way(way)
    for relevance in readings.values():
        check_searched(query, gallery, relevance, metric, ks, way)
    if way == "steps":
        return {
            name: retrieve(query, gallery, relevance, metric, ks)
            for name, relevance in readings.items()
        }
    look = first_positions if way == "first100" else positions
    found = look(query, gallery, readings, metric)
    return {
        name: of_positions(found[name], ks, way, unopposed(relevance, len(gallery)))
        for name, relevance in readings.items()
    }


def of_positions(
    found: Positions, ks: tuple[int, ...], way: str, apart: np.ndarray | None = None
) -> Retrieval:
    """The figures of queries whose positives stand at these places.

    Args:
        ks, way: as for retrieve. apart: bool (Q,), which queries are unopposed; None: none.

    Raises BctError if no query has a positive and a negative.
    """
    ap, rank = figures_of(found, way)
    precision = {k: precision_at(found, k, whole=way == "first100") for k in ks}
    return summary(ap, rank, ks, apart, precision)


def figures_of(found: Positions, way: str) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank), see Retrieval."""
    rank = found.first()
    return average_precision(found, way), np.minimum(rank, FIRST + 1) if way == "first100" else rank


def _ranked(
    query: np.ndarray, gallery: np.ndarray, relevance: Relevance, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank) of all queries, see bct.metrics.ranking."""
    if isinstance(relevance, ByItem):
        return by_item(query, gallery, relevance, metric)
    if relevance.ignored is not None:
        return _ranked_in_parts(query, gallery, relevance, metric)
    labels, others = numbered(relevance)
    own = relevance.leave_one_out
    if own and gallery is query and len(labels) * np.bincount(labels).max() <= SCORES:
        return by_pairs(query, labels, metric)
    return by_rows(query, labels, gallery, others, metric, own)


def _ranked_in_parts(
    query: np.ndarray, gallery: np.ndarray, relevance: ByClass, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same item by item, some queries at a time: all queries' positives may be too many."""
    items, found = by_query(relevance), []
    for start in range(0, len(query), _PART):
        rows = np.arange(start, min(start + _PART, len(query)))
        found.append(by_item(query[rows], gallery, items(rows), metric))
    ap, rank = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ap, rank


def of_queries(result: Retrieval, chosen: np.ndarray) -> Retrieval:
    """The figures of some of the queries, against the same gallery.

    Args:
        chosen: bool (Q,).

    Raises:
        BctError: none of them has a positive and a negative.
    """
    precision = {k: of_k[chosen] for k, of_k in result.precision.items()}
    return summary(result.ap[chosen], result.rank[chosen], tuple(result.top), precision=precision)


def cmc(result: Retrieval, depth: int) -> np.ndarray:
    """Cumulative match characteristic: top-1, top-2, ..., top-depth, float64 (depth,)."""
    rank = result.rank[result.rank > 0]
    hits = np.bincount(np.minimum(rank, depth + 1), minlength=depth + 2)[1:-1]
    return np.cumsum(hits) / len(rank)


class ClassFigures(NamedTuple):
    """Of the C classes whose queries have a positive.

    labels: (C,), ascending; queries: int64 (C,), those with a positive; top: k -> float64 (C,);
    mean_ap: float64 (C,).
    """

    labels: np.ndarray
    queries: np.ndarray
    top: dict[int, np.ndarray]
    mean_ap: np.ndarray


def by_class(result: Retrieval, labels: np.ndarray) -> ClassFigures:
    """Means over the queries of each class.

    Args:
        labels: (Q,), the queries'.
    """
    found = result.rank > 0
    known, of_query, count = np.unique(labels[found], return_inverse=True, return_counts=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(of_query, values, len(known)) / count

    top = {k: mean(result.rank[found] <= k) for k in result.top}
    return ClassFigures(known, count, top, mean(result.ap[found]))


def bootstrap_means(
    values: np.ndarray, units: np.ndarray, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """What the means of queries' figures are in resamples of the units, mostly classes.

    A resample draws U of the U units with replacement; w[u] is how often u was drawn. In it

        mean_k = sum over queries q of w[u_q] values_kq / sum over q of w[u_q]

    All K systems have the same resamples: what is common to them cancels in a difference. The
    gallery stays as it is. See bct.metrics.percentiles.interval.

    Args:
        values: float (K, Q), of the same queries by K systems, e.g. their average precision.
        units: (Q,), any ids.

    Returns:
        float64 (R, K).

    Raises:
        BctError: shapes that do not fit, no query, or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or np.shape(units) != values.shape[1:] or not values.size:
        raise BctError(
            f"the figures are {values.shape}, their units {np.shape(units)}",
            "give figures (systems, queries) and a unit per query, for at least one query",
        )
    if not np.isfinite(values).all():
        raise BctError("a query's figure is not finite", "leave out queries without a positive")
    unit, sizes = np.unique(units, return_inverse=True, return_counts=True)[1:]
    sums = np.stack([np.bincount(unit, row) for row in values])  # (K, U)
    stream = generator("cpu", seed, "bootstrap over classes")
    means = np.empty((resamples, len(values)))
    for r in range(resamples):
        drawn = torch.randint(len(sizes), (len(sizes),), generator=stream).numpy()
        weight = np.bincount(drawn, minlength=len(sizes))  # (U,)
        means[r] = sums @ weight / (sizes @ weight)
    return means


def summary(
    ap: np.ndarray,
    rank: np.ndarray,
    ks: tuple[int, ...],
    apart: np.ndarray | None = None,
    precision: Mapping[int, np.ndarray] | None = None,
) -> Retrieval:
    """The means of queries' figures.

    Args:
        ap, rank, precision: see Retrieval.
        apart: bool (Q,), which queries are unopposed; None: rank says it.

    Raises BctError if no query has a positive and a negative.
    """
    if apart is not None and apart.any():
        ap, rank = np.where(apart, np.nan, ap), np.where(apart, -1, rank)
    found = rank > 0
    queries, free = int(found.sum()), int((rank < 0).sum())
    if not queries and free:
        raise BctError(
            "all that a query could find is of its own class, so no item can be wrong",
            "search in a gallery of several classes",
        )
    if not queries:
        raise BctError("no query has a positive in the gallery", "check the labels of both sides")
    top = {k: float((rank[found] <= k).mean()) for k in ks}
    without = len(ap) - queries - free
    at = {k: np.where(found, of_k, np.nan) for k, of_k in (precision or {}).items()}
    return Retrieval(top, float(ap[found].mean()), ap, rank, queries, without, free, at)


def check_ks(ks: tuple[int, ...], way: str = "steps") -> None:
    """Raises BctError for a k that retrieve does not take."""
    if not ks or min(ks) < 1:
        raise BctError(f"top-k is asked for k of {ks}", "name at least one k, from 1")
    if way == "first100" and max(ks) > FIRST:
        raise BctError(f"top-{max(ks)} is asked for of the first {FIRST}", "name smaller ks")


def check_searched(
    query: np.ndarray,
    gallery: np.ndarray,
    relevance: Relevance,
    metric: str,
    ks: tuple[int, ...],
    way: str = "steps",
) -> None:
    """Raises BctError for what retrieve does not take."""
    if metric not in METRICS:
        raise BctError(f"the metric is {metric!r}", f"choose from {', '.join(METRICS)}")
    check_ks(ks, way)
    for name, features in (("query", query), ("gallery", gallery)):
        if features.ndim != 2 or not len(features):
            raise BctError(
                f"the {name} embeddings are {features.shape}",
                "give one row per item, and at least one item",
            )
    if query.shape[1] != gallery.shape[1]:
        raise BctError(
            f"the queries have {query.shape[1]} dimensions, the gallery {gallery.shape[1]}",
            "cut or map one side to the width of the other",
        )
    check(relevance, len(query), len(gallery))
