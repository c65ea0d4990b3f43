"""Average precision and rank of the first hit, of many queries, from blocks of scores.

An average precision needs no order of the whole gallery, only how many items score at least as high
as each of the query's positives:

    AP = mean over positives p of  #{positives >= s_p} / #{items >= s_p}
    rank of the first hit = 1 + #{negatives >= the best positive}

Items are those that the query does not ignore. This is scikit-learn's average_precision_score,
which takes items of one score together. Ties count against the query: a negative that scores as
high as the best positive comes before it, as in bct.metrics.scores.identification. The reference
evaluators leave ties to an unstable sort.

Memory: float32 copies of the embeddings and less than 1 GiB, however many items.
"""

from collections.abc import Sequence
from itertools import combinations
from math import isqrt
from threading import Lock

import numpy as np
import torch

from bct.metrics.blocks import (
    SCORES,
    SIDE,
    borrowed,
    count_at_least,
    factors,
    make_buffers,
    no_results,
    padded,
    precision,
    product,
    round_up,
)
from bct.metrics.relevance import ByItem
from bct.threads import each_in_threads


def by_rows(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    metric: str,
    own: bool,
    block: int = SIDE,
) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank), see Retrieval, from blocks of queries by the whole gallery. Positives are the
    items of the query's class.

    Labels are 0, 1, ...; own: query i and gallery row i are the same item.
    """
    ap, rank = no_results(len(query))
    sizes = np.bincount(gallery_labels, minlength=query_labels.max() + 1)
    ends = np.cumsum(sizes)
    columns = np.argsort(gallery_labels, kind="stable")  # a query's positives lie side by side
    rows = np.argsort(query_labels, kind="stable")
    rows = rows[sizes[query_labels[rows]] > own]
    if not len(rows):
        return ap, rank
    place = np.argsort(columns)
    a, b = factors(query, rows, metric)[0], padded(factors(gallery, columns, metric)[1])
    b = b[: round_up(len(gallery))]
    # of each positive its score, its count and what is made of them are held, too
    width = len(b) + 8 * int(sizes[query_labels[rows]].max())
    block = max(1, min(block, SCORES // torch.get_num_threads() // width))
    buffers = make_buffers(min(block, len(rows)) * len(b))

    def work(part: slice) -> None:
        chosen = rows[part]
        with borrowed(buffers) as (buffer,):
            scores = product(a[part], b, len(gallery), buffer)
            if own:
                scores[np.arange(len(chosen)), place[chosen]] = -np.inf
            spans = [
                (i, j, ends[label] - sizes[label], ends[label])
                for i, j, label in _runs(query_labels[chosen])
            ]
            positives = _positives(scores, spans, own)
            ap[chosen], rank[chosen] = precision(positives, count_at_least(scores, positives))

    each_in_threads(work, len(rows), block)
    return ap, rank


def by_pairs(
    features: np.ndarray, labels: np.ndarray, metric: str, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank) of leave-one-out by half of the products, as both metrics are symmetric.

    The blocks on the diagonal are whole classes, so they hold all positives. After them every other
    block is counted for its rows and, transposed, for its columns. Labels are 0, 1, ...
    """
    ap, rank = no_results(len(labels))
    order = np.argsort(labels, kind="stable")
    runs = _runs(labels[order])
    largest = max(j - i for i, j, _ in runs)
    if largest == 1:
        return ap, rank
    a, b = (padded(factor) for factor in factors(features, order, metric))
    side = min(side, isqrt(SCORES // torch.get_num_threads()))
    classes = _whole_classes(runs, side)
    blocks = [(block[0][0], block[-1][1]) for block in classes]
    side = round_up(max(j - i for i, j in blocks))
    buffers = make_buffers(side * side, side * side)
    positives = np.full((len(order), largest - 1), np.inf, np.float32)
    counts, counting = np.empty(positives.shape, np.int32), Lock()

    def on_diagonal(part: slice) -> None:
        i, j = blocks[part.start]
        spans = [(first - i, end - i, first - i, end - i) for first, end, _ in classes[part.start]]
        with borrowed(buffers) as (buffer, _):
            scores = product(a[i:j], b[i : i + round_up(j - i)], j - i, buffer)
            np.fill_diagonal(scores, -np.inf)
            found = _positives(scores, spans, own=True)
            positives[i:j, : found.shape[1]] = found
            counts[i:j] = count_at_least(scores, positives[i:j])

    def off_diagonal(part: slice) -> None:
        (i, j), (k, end) = pairs[part.start]
        rows, columns = round_up(j - i), round_up(end - k)
        with borrowed(buffers) as (buffer, transposed):
            scores = product(a[i : i + rows], b[k : k + columns], end - k, buffer)
            other = transposed[: scores.size].view(columns, rows)
            other.copy_(torch.from_numpy(scores).T)  # before counting sorts the rows
            other[:, j - i :] = -np.inf
            for start, stop, block in ((i, j, scores), (k, end, other.numpy())):
                found = count_at_least(block[: stop - start], positives[start:stop])
                with counting:
                    counts[start:stop] += found

    pairs = list(combinations(blocks, 2))
    each_in_threads(on_diagonal, len(blocks), 1)
    each_in_threads(off_diagonal, len(pairs), 1)
    for i, j in blocks:
        ap[order[i:j]], rank[order[i:j]] = precision(positives[i:j], counts[i:j])
    return ap, rank


def by_item(
    query: np.ndarray, gallery: np.ndarray, relevance: ByItem, metric: str, block: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank), see Retrieval, where each query has positives and ignored items of its own."""
    ap, rank = no_results(len(query))
    sizes = relevance.positive.counts()
    rows = np.argsort(sizes, kind="stable")  # queries of about as many positives lie together
    rows = rows[sizes[rows] > 0]
    if not len(rows):
        return ap, rank
    a = factors(query, rows, metric)[0]
    b = padded(factors(gallery, np.arange(len(gallery)), metric)[1])[: round_up(len(gallery))]
    block = max(1, min(block, SCORES // torch.get_num_threads() // (len(b) + 8 * sizes.max())))
    buffers = make_buffers(min(block, len(rows)) * len(b))

    def work(part: slice) -> None:
        positive, ignored = (side.of(rows[part]) for side in relevance)
        with borrowed(buffers) as (buffer,):
            scores = product(a[part], b, len(gallery), buffer)
            scores[ignored.owners(), ignored.rows] = -np.inf
            column, there = positive.padded()
            positives = np.take_along_axis(scores, column, axis=1)
            positives[~there] = np.inf
            positives.sort(axis=1)
            counts = count_at_least(scores, positives)
            ap[rows[part]], rank[rows[part]] = precision(positives, counts)

    each_in_threads(work, len(rows), block)
    return ap, rank


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
