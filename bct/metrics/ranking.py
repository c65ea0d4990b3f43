"""Average precision and rank of the first hit, of many queries, from blocks of scores.

An average precision needs no order of the whole gallery, only how many items score at least as high
as each of the query's positives (items of its class):

    AP = mean over positives p of  #{positives >= s_p} / #{items >= s_p}
    rank of the first hit = 1 + #{negatives >= the best positive}

This is scikit-learn's average_precision_score, which takes items of one score together. Ties count
against the query: a negative that scores as high as the best positive comes before it, as in
bct.metrics.identification. The reference evaluators leave ties to an unstable sort.

Scores are float32 products, computed in blocks. Each is computed once, and that number serves as
threshold and is counted: the same two rows multiplied in a block of another shape may differ in the
last bit. Memory: float32 copies of the embeddings and less than 1 GiB, however many items. A thread
does all of a block: product, transpose, sort and search.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from math import isqrt
from queue import SimpleQueue
from threading import Lock

import numpy as np
import torch

from bct.errors import BctError
from bct.threads import each_in_threads

SIDE = 1 << 12  # rows of a block of scores
SCORES = 1 << 25  # numbers held at once: of all threads' blocks, or of all positives
CHUNK = 1 << 16  # scores that are sorted at once: they stay in the cache
LANES = 16  # numbers of a cache line: products and transposes of whole lines are a third faster


def by_rows(
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
    a, b = _factors(query, rows, metric)[0], _lines(_factors(gallery, columns, metric)[1])
    b = b[: _up(len(gallery))]
    # of each positive its score, its count and what is made of them are held, too
    width = len(b) + 8 * int(sizes[query_labels[rows]].max())
    block = max(1, min(block, SCORES // torch.get_num_threads() // width))
    buffers = _buffers(min(block, len(rows)) * len(b))

    def work(part: slice) -> None:
        chosen = rows[part]
        with _borrowed(buffers) as (buffer,):
            scores = _product(a[part], b, len(gallery), buffer)
            if own:
                scores[np.arange(len(chosen)), place[chosen]] = -np.inf
            spans = [
                (i, j, ends[label] - sizes[label], ends[label])
                for i, j, label in _runs(query_labels[chosen])
            ]
            positives = _positives(scores, spans, own)
            ap[chosen], rank[chosen] = _precision(positives, _count_at_least(scores, positives))

    each_in_threads(work, len(rows), block)
    return ap, rank


def by_pairs(
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
    a, b = (_lines(factor) for factor in _factors(features, order, metric))
    side = min(side, isqrt(SCORES // torch.get_num_threads()))
    classes = _whole_classes(runs, side)
    blocks = [(block[0][0], block[-1][1]) for block in classes]
    side = _up(max(j - i for i, j in blocks))
    buffers = _buffers(side * side, side * side)
    positives = np.full((len(order), largest - 1), np.inf, np.float32)
    counts, counting = np.empty(positives.shape, np.int32), Lock()

    def on_diagonal(part: slice) -> None:
        i, j = blocks[part.start]
        spans = [(first - i, end - i, first - i, end - i) for first, end, _ in classes[part.start]]
        with _borrowed(buffers) as (buffer, _):
            scores = _product(a[i:j], b[i : i + _up(j - i)], j - i, buffer)
            np.fill_diagonal(scores, -np.inf)
            found = _positives(scores, spans, own=True)
            positives[i:j, : found.shape[1]] = found
            counts[i:j] = _count_at_least(scores, positives[i:j])

    def off_diagonal(part: slice) -> None:
        (i, j), (k, end) = pairs[part.start]
        rows, columns = _up(j - i), _up(end - k)
        with _borrowed(buffers) as (buffer, transposed):
            scores = _product(a[i : i + rows], b[k : k + columns], end - k, buffer)
            other = transposed[: scores.size].view(columns, rows)
            other.copy_(torch.from_numpy(scores).T)  # before counting sorts the rows
            other[:, j - i :] = -np.inf
            for start, stop, block in ((i, j, scores), (k, end, other.numpy())):
                found = _count_at_least(block[: stop - start], positives[start:stop])
                with counting:
                    counts[start:stop] += found

    pairs = list(combinations(blocks, 2))
    each_in_threads(on_diagonal, len(blocks), 1)
    each_in_threads(off_diagonal, len(pairs), 1)
    for i, j in blocks:
        ap[order[i:j]], rank[order[i:j]] = _precision(positives[i:j], counts[i:j])
    return ap, rank


def _buffers(*sizes: int) -> SimpleQueue:
    """For each thread float32 memory of these sizes: to ask for it anew would cost every block."""
    buffers: SimpleQueue = SimpleQueue()
    for _ in range(torch.get_num_threads()):
        buffers.put([torch.empty(size) for size in sizes])
    return buffers


@contextmanager
def _borrowed(buffers: SimpleQueue) -> Iterator[list[torch.Tensor]]:
    """A thread's memory, given back in any case: the others would wait for it."""
    memory = buffers.get()
    try:
        yield memory
    finally:
        buffers.put(memory)


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


def _up(n: int) -> int:
    """n rounded up to whole cache lines."""
    return -(-n // LANES) * LANES


def _lines(rows: torch.Tensor) -> torch.Tensor:
    """With rows of zeros after the last, so that any block of them can be rounded up."""
    return torch.nn.functional.pad(rows, (0, 0, 0, LANES - 1))


def _product(a: torch.Tensor, b: torch.Tensor, columns: int, buffer: torch.Tensor) -> np.ndarray:
    """a b^T, float32 (A, B), in the buffer's memory. From `columns` on it holds -inf, which is
    below every threshold."""
    out = buffer[: len(a) * len(b)].view(len(a), len(b))
    torch.mm(a, b.T, out=out)[:, columns:] = -np.inf
    return out.numpy()


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


def _count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of its row's scores are >= each threshold, int32 (B, P). Sorts the scores' rows.

    Args:
        scores: float32 (B, G); thresholds: float32 (B, P), ascending.
    """
    lower = np.empty(thresholds.shape, np.int32)
    # what lies below the lowest threshold counts for none; made equal it costs the sort one pass
    below = np.nextafter(thresholds[:, :1], np.float32(-np.inf))
    step = max(1, CHUNK // scores.shape[1])
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        rows = np.maximum(scores[part], below[part], out=scores[part])
        rows.sort(axis=1)
        torch.searchsorted(
            *(torch.from_numpy(x) for x in (rows, thresholds[part])),
            out=torch.from_numpy(lower[part]), out_int32=True,
        )  # fmt: skip
    return scores.shape[1] - lower


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
