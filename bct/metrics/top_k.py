"""The best k items of each query, exact, from one pass over a gallery that may lie on disk.

Blocks of the gallery are multiplied with all queries. Of a block's scores only those are kept that
reach the query's threshold, the k-th best so far: few, after the first blocks, so that a pass costs
little more than its products. Memory: the queries, a block per thread, and what is kept.
"""

from collections.abc import Mapping
from threading import Lock

import numpy as np
import torch

from bct.errors import BctError
from bct.metrics.average_precision import FIRST
from bct.metrics.blocks import SCORES, borrowed, make_queue
from bct.metrics.positions import LATER, Positions
from bct.metrics.products import ROWS, Products
from bct.metrics.relevance import Relevance, Rows, by_query
from bct.threads import each_in_threads

_PART = 1 << 10  # queries whose positives are looked at together


def top_k(
    query: np.ndarray, gallery: np.ndarray, k: int, metric: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """(rows int64 (Q, k), scores float32 (Q, k)), best first; of equal scores the smaller row.

    Args:
        query: float (Q, D); gallery: float (G, D), also a memory-mapped file. k: min(k, G) is what
            there is.

    Raises BctError for a k below 1, and for embeddings that are not numbers.
    """
    if k < 1:
        raise BctError(f"the best {k} items are asked for", "let k be at least 1")
    k = min(k, len(gallery))
    products, kept = Products(query, gallery, metric), _Best(len(query), k)
    rows = max(1, min(ROWS, SCORES // torch.get_num_threads() // len(query), len(gallery)))
    queue = make_queue(lambda: (products.buffer(rows), torch.empty(len(query) * rows)))

    def work(part: slice) -> None:
        with borrowed(queue) as (buffer, memory):
            number = part.stop - part.start
            scores = memory[: len(query) * number].view(len(query), number)
            products.fill(scores, slice(None), part, buffer)
            kept.add(scores.numpy(), part.start)

    each_in_threads(work, len(gallery), rows)
    found, scores = kept.result()
    return found, scores / products.lengths[:, None]


class _Best:
    """The best k of each query among what was added, and more that may be among them."""

    def __init__(self, queries: int, k: int):
        self.k, self.lock = k, Lock()
        self.threshold = np.full(queries, -np.inf, np.float32)
        self.owner, self.row = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.score = np.zeros(0, np.float32)
        self.waiting: list[tuple[np.ndarray, ...]] = []

    def add(self, scores: np.ndarray, first: int) -> None:
        """Takes what reaches the thresholds: float32 (Q, R) of gallery rows `first`, ..."""
        threshold = self.threshold
        if threshold[0] == -np.inf and scores.shape[1] > self.k:
            threshold = np.partition(scores, -self.k, axis=1)[:, -self.k]
        owner, column = np.nonzero(scores >= threshold[:, None])
        found = owner, column + first, scores[owner, column]
        with self.lock:
            self.waiting.append(found)
            if sum(len(part[0]) for part in self.waiting) > self.k * len(self.threshold) // 4:
                self._select()

    def _select(self) -> None:
        held = self.owner, self.row, self.score
        together = [np.concatenate(parts) for parts in zip(held, *self.waiting, strict=True)]
        self.owner, self.row, self.score = best(*together, self.k)
        self.waiting = []
        full = np.flatnonzero(np.bincount(self.owner, minlength=len(self.threshold)) == self.k)
        last = np.searchsorted(self.owner, full, side="right") - 1
        threshold = self.threshold.copy()  # other threads read the one that is there
        threshold[full] = self.score[last]
        self.threshold = threshold

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        self._select()
        shape = len(self.threshold), self.k
        return self.row.reshape(shape), self.score.reshape(shape)


def best(
    owner: np.ndarray, row: np.ndarray, score: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best k entries of each owner, or all it has: by owner, the best first, of equal scores
    the smaller row. Each (n,)."""
    order = np.lexsort((row, -score, owner))
    owner = owner[order]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    order = order[place < k]
    return owner[place < k], row[order], score[order]


def first_positions(
    query: np.ndarray,
    gallery: np.ndarray,
    relevances: Mapping[str, Relevance],
    metric: str = "cosine",
    first: int = FIRST,
) -> dict[str, Positions]:
    """What positions gives, but LATER is the place of all positives beyond the first 100.

    Of equal scores the item that is first in the gallery comes first, as a list that is handed in
    has an order. Arguments and errors: see positions.
    """
    queries = [by_query(relevance) for relevance in relevances.values()]
    parts = [
        np.arange(start, min(start + _PART, len(query))) for start in range(0, len(query), _PART)
    ]
    ignored = max(int(of(part).ignored.counts().max()) for of in queries for part in parts)
    rows, _ = top_k(query, gallery, first + ignored, metric)
    return {
        name: Positions.joined(
            [_positions_in(rows[part], *of(part), len(gallery), first) for part in parts]
        )
        for name, of in zip(relevances, queries, strict=True)
    }


def _positions_in(
    ranked: np.ndarray, positive: Rows, ignored: Rows, gallery: int, first: int
) -> Positions:
    """From the ranking of some queries, int (B, K), cut after its first items."""
    names = ranked + gallery * np.arange(len(ranked))[:, None]
    kept, hit = (
        np.isin(names, side.owners() * gallery + side.rows, invert=invert)
        for side, invert in ((ignored, True), (positive, False))
    )
    place = np.cumsum(kept, axis=1)
    hit &= place <= first
    offsets, found = positive.offsets, hit.sum(1)
    out = Positions(offsets, np.full(offsets[-1], LATER))
    out.places[out.ordinals() <= np.repeat(found, out.counts())] = place[hit]
    return out
