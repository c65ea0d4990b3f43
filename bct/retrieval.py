"""Retrieval: CMC top-k and mean average precision, exact, without ranking the gallery.

An average precision needs no order of the whole gallery, only how many items score at least as high
as each of the query's positives (items of its class):

    AP = mean over positives p of  #{positives >= s_p} / #{items >= s_p}
    rank of the first hit = 1 + #{negatives >= the best positive}

This is scikit-learn's average_precision_score, which takes items of one score together. Ties count
against the query: a negative that scores as high as the best positive comes before it, as in
bct.metrics.identification. The reference evaluators leave ties to an unstable sort.

Scores are float32 products, computed in blocks. Each is computed once, and that number serves as
threshold and is counted: the same two rows multiplied in a block of another shape may differ in the
last bit. Memory: float32 copies of the embeddings and less than 1 GiB, however many items.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from bct.distributed import generator
from bct.errors import BctError

SIDE = 1 << 12  # rows of a block of scores
SCORES = 1 << 25  # numbers held at once: of a block, or of all positives
CHUNK = 1 << 18  # scores that a thread sorts at once: they stay in its cache

METRICS = ("cosine", "l2")


class Retrieval(NamedTuple):
    """Of Q queries, those without a positive in the gallery are counted apart.

    top: share of queries with a positive among the best k, per k.
    mean_ap: mean average precision.
    ap: float64 (Q,), average precision of each query, NaN without a positive.
    rank: int64 (Q,), rank of the first positive, from 1; 0 without a positive.
    queries, without: how many have a positive and how many have not; only the former are in the
        means.
    """

    top: dict[int, float]
    mean_ap: float
    ap: np.ndarray
    rank: np.ndarray
    queries: int
    without: int


def retrieval(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    metric: str = "cosine",
    ks: tuple[int, ...] = (1, 5),
) -> Retrieval:
    """Queries against a gallery of other items, whose embeddings may be another model's.

    Args:
        query: float (Q, D); query_labels: (Q,), any ids.
        gallery: float (G, D); gallery_labels: (G,).
        metric: "cosine" scores by the product of the unit vectors (0 for a zero vector), "l2" by
            -|q - g|^2 / 2, computed in float32 as q.g - |q|^2 / 2 - |g|^2 / 2.
        ks: which top-k.

    Raises:
        BctError: shapes that do not fit; embeddings that are not numbers; an unknown metric; a k
            below 1; no query with a positive.
    """
    _check(query, query_labels, gallery, gallery_labels, metric, ks)
    labels = np.unique(np.concatenate([query_labels, gallery_labels]), return_inverse=True)[1]
    labels, others = labels[: len(query)], labels[len(query) :]
    return _result(*_by_rows(query, labels, gallery, others, metric, own=False), ks)


def leave_one_out(
    query: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    metric: str = "cosine",
    ks: tuple[int, ...] = (1, 5),
) -> Retrieval:
    """Every item against all the others.

    Args:
        query: float (N, D); labels: (N,), any ids.
        gallery: float (N, D), another model's embeddings of the same items, in the same order;
            None: the queries'. Item i is never found by query i.
        metric, ks: see retrieval.

    Raises:
        BctError: as retrieval.
    """
    if gallery is not None and len(gallery) != len(query):
        raise BctError(
            f"there are {len(query)} queries and {len(gallery)} gallery rows",
            "give both models' embeddings of the same items, or call retrieval for two sets",
        )
    _check(query, labels, query if gallery is None else gallery, labels, metric, ks)
    labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    if gallery is None and len(labels) * sizes.max() <= SCORES:
        return _result(*_by_pairs(query, labels, metric), ks)
    gallery = query if gallery is None else gallery
    return _result(*_by_rows(query, labels, gallery, labels, metric, own=True), ks)


def of_queries(result: Retrieval, chosen: np.ndarray) -> Retrieval:
    """The figures of some of the queries, against the same gallery.

    Args:
        chosen: bool (Q,).

    Raises:
        BctError: none of them has a positive.
    """
    return _result(result.ap[chosen], result.rank[chosen], tuple(result.top))


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
    gallery stays as it is. See bct.bootstrap.interval.

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


def _by_rows(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    metric: str,
    own: bool,
    block: int = SIDE,
) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank), see Retrieval, from blocks of queries by the whole gallery.

    Labels are 0, 1, ...; own: query i and gallery row i are the same item.
    """
    ap, rank = _nothing(len(query))
    sizes = np.bincount(gallery_labels, minlength=query_labels.max() + 1)
    ends = np.cumsum(sizes)
    columns = np.argsort(gallery_labels, kind="stable")  # a query's positives lie side by side
    rows = np.argsort(query_labels, kind="stable")
    rows = rows[sizes[query_labels[rows]] > own]
    if not len(rows):
        return ap, rank
    place = np.argsort(columns)
    a, b = _factors(query, rows, metric)[0], _factors(gallery, columns, metric)[1]
    # of each positive its score, its count and what is made of them are held, too
    width = len(gallery) + 8 * int(sizes[query_labels[rows]].max())
    block = max(1, min(block, SCORES // width))
    buffer = torch.empty(min(block, len(rows)) * len(gallery))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(rows), block):
            chosen = rows[start : start + block]
            scores = _product(a[start : start + block], b, buffer)
            if own:
                scores[np.arange(len(chosen)), place[chosen]] = -np.inf
            spans = [
                (i, j, ends[label] - sizes[label], ends[label])
                for i, j, label in _runs(query_labels[chosen])
            ]
            positives = _positives(scores, spans, own)
            counts = _count_at_least(scores, positives, pool)
            ap[chosen], rank[chosen] = _precision(positives, counts)
    return ap, rank


def _by_pairs(
    features: np.ndarray, labels: np.ndarray, metric: str, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank) of leave-one-out by half of the products, as both metrics are symmetric.

    The blocks on the diagonal are whole classes, so they hold all positives. After them every other
    block is counted for its rows and, transposed, for its columns. Labels are 0, 1, ...
    """
    ap, rank = _nothing(len(labels))
    order = np.argsort(labels, kind="stable")
    runs = _runs(labels[order])
    largest = max(j - i for i, j, _ in runs)
    if largest == 1:
        return ap, rank
    a, b = _factors(features, order, metric)
    classes = _whole_classes(runs, side)
    blocks = [(block[0][0], block[-1][1]) for block in classes]
    side = max(j - i for i, j in blocks)
    buffer, transposed = torch.empty(side * side), torch.empty(side * side)
    positives = np.full((len(order), largest - 1), np.inf, np.float32)
    counts = np.empty(positives.shape, np.int32)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for (i, j), block in zip(blocks, classes, strict=True):
            scores = _product(a[i:j], b[i:j], buffer)
            np.fill_diagonal(scores, -np.inf)
            spans = [(first - i, end - i, first - i, end - i) for first, end, _ in block]
            found = _positives(scores, spans, own=True)
            positives[i:j, : found.shape[1]] = found
            counts[i:j] = _count_at_least(scores, positives[i:j], pool)
        for n, (i, j) in enumerate(blocks):
            for k, end in blocks[n + 1 :]:
                scores = _product(a[i:j], b[k:end], buffer)
                other = transposed[: scores.size].view(end - k, j - i)
                other.copy_(torch.from_numpy(scores).T)  # before counting sorts the rows
                counts[i:j] += _count_at_least(scores, positives[i:j], pool)
                counts[k:end] += _count_at_least(other.numpy(), positives[k:end], pool)
    for i, j in blocks:
        ap[order[i:j]], rank[order[i:j]] = _precision(positives[i:j], counts[i:j])
    return ap, rank


def _nothing(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank) of n queries without a positive."""
    return np.full(n, np.nan), np.zeros(n, np.int64)


def _factors(
    features: np.ndarray, order: np.ndarray, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 rows in this order, as queries and as gallery, whose products are the scores."""
    rows = np.asarray(features[order], np.float32)
    if not np.isfinite(rows).all():
        raise BctError(
            "the embeddings hold NaN or inf", "check the weights and the precision (--amp off)"
        )
    x = torch.from_numpy(rows)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    if metric == "cosine":
        x /= norm.clamp_min(1e-12)
        return x, x
    half = norm.square().div(2).float()
    if not torch.isfinite(4 * half).all():  # no score may overflow
        raise BctError("the embeddings are too long for float32", "normalise them")
    one = torch.ones_like(half)
    return torch.cat([x, -half, one], 1), torch.cat([x, one, -half], 1)


def _product(a: torch.Tensor, b: torch.Tensor, buffer: torch.Tensor) -> np.ndarray:
    """a b^T, float32 (A, B), in the buffer's memory."""
    out = buffer[: len(a) * len(b)].view(len(a), len(b))
    return torch.mm(a, b.T, out=out).numpy()


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, end, label) of each run of equal labels."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    return list(zip(starts, [*starts[1:], len(labels)], labels[starts], strict=True))


def _whole_classes(runs: list[tuple[int, int, int]], side: int) -> list[list[tuple[int, int, int]]]:
    """The runs in groups, of at most `side` rows if no class has more."""
    groups = [runs[:1]]
    for run in runs[1:]:
        if run[1] - groups[-1][0][0] > side:
            groups.append([])
        groups[-1].append(run)
    return groups


def _positives(
    scores: np.ndarray, spans: Sequence[tuple[int, int, int, int]], own: bool
) -> np.ndarray:
    """Each row's scores of positives, ascending, then inf: float32 (B, P).

    Args:
        spans: (i, j, first, end): the positives of rows i..j-1 are columns first..end-1.
        own: these hold the query itself at -inf, which is left out.
    """
    width = max(end - first for _, _, first, end in spans)
    out = np.full((len(scores), width), np.inf, np.float32)
    for i, j, first, end in spans:
        out[i:j, : end - first] = scores[i:j, first:end]
    out.sort(axis=1)
    return np.ascontiguousarray(out[:, own:])


def _count_at_least(
    scores: np.ndarray, thresholds: np.ndarray, pool: ThreadPoolExecutor
) -> np.ndarray:
    """How many of its row's scores are >= each threshold, int32 (B, P). Sorts the scores' rows.

    Args:
        scores: float32 (B, G); thresholds: float32 (B, P), ascending.
    """
    # what lies below the lowest threshold counts for none; made equal it costs the sort one pass
    below = np.nextafter(thresholds[:, :1], np.float32(-np.inf))

    def sort(start: int) -> None:
        rows = scores[start : start + chunk]
        np.maximum(rows, below[start : start + chunk], out=rows)
        rows.sort(axis=1)

    chunk = max(1, CHUNK // scores.shape[1])
    list(pool.map(sort, range(0, len(scores), chunk)))  # both calls run without Python's lock
    lower = torch.searchsorted(
        torch.from_numpy(scores), torch.from_numpy(thresholds), out_int32=True
    )
    return scores.shape[1] - lower.numpy()


def _precision(positives: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ap (B,), rank (B,)) from the positives' scores, ascending, then inf, and their counts."""
    found = np.isfinite(positives)  # (B, P)
    number = found.sum(1)
    thresholds = torch.from_numpy(positives)
    lower = torch.searchsorted(thresholds, thresholds, out_int32=True).numpy()
    as_high = number[:, None].astype(np.int32) - lower  # positives that score at least as high
    precision = np.divide(as_high, counts, where=found, out=np.zeros(found.shape))
    any_found = number > 0
    ap = np.divide(precision.sum(1), number, where=any_found, out=np.full(len(number), np.nan))
    best = np.arange(len(number)), np.maximum(number - 1, 0)
    rank = np.where(any_found, 1 + counts[best] - as_high[best], 0)
    return ap, rank


def _result(ap: np.ndarray, rank: np.ndarray, ks: tuple[int, ...]) -> Retrieval:
    found = rank > 0
    queries = int(found.sum())
    if not queries:
        raise BctError(
            "no query has an item of its class in the gallery", "check the labels of both sets"
        )
    top = {k: float((rank[found] <= k).mean()) for k in ks}
    return Retrieval(top, float(ap[found].mean()), ap, rank, queries, len(ap) - queries)


def _check(query, query_labels, gallery, gallery_labels, metric, ks) -> None:
    if metric not in METRICS:
        raise BctError(f"the metric is {metric!r}", f"choose from {', '.join(METRICS)}")
    if not ks or min(ks) < 1:
        raise BctError(f"top-k is asked for k of {ks}", "name at least one k, from 1")
    sides = (("query", query, query_labels), ("gallery", gallery, gallery_labels))
    for name, features, labels in sides:
        if features.ndim != 2 or np.shape(labels) != (len(features),) or not len(features):
            raise BctError(
                f"the {name} embeddings are {features.shape}, their labels {np.shape(labels)}",
                "give one row and one label per item, and at least one item",
            )
    if query.shape[1] != gallery.shape[1]:
        raise BctError(
            f"the queries have {query.shape[1]} dimensions, the gallery {gallery.shape[1]}",
            "cut or map one side to the width of the other",
        )
