"""Where a query's positives stand in its own ranking, for several readings in one pass.

A ranking need not be made for that. With the items that a query ignores taken out,

    place of its i-th best positive = i + #{negatives that score at least as high}

so ties count against the query, as everywhere here. How many items of the whole gallery score at
least as high as each positive is counted once, for all readings; what a reading ignores, and its
positives, are few and are taken off again.

Scores are float32; what stands too near to a positive to tell by them is settled in float64, see
near_ties. Memory: less than 1 GiB, however many items; a memory-mapped gallery is read block by
block.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from bct.metrics.blocks import SCORES, borrowed, make_queue
from bct.metrics.near_ties import heights_of, settled
from bct.metrics.products import ROWS, Products, even
from bct.metrics.relevance import ByItem, Relevance, Rows, by_query, positives
from bct.threads import each_in_threads, in_threads

LATER = np.iinfo(np.int64).max  # the place of a positive that comes after all that was looked at


class Positions(NamedTuple):
    """Places, from 1, of each query's positives, ascending, without the items that it ignores.

    offsets: int64 (Q + 1,); places: int64: those of query i are places[offsets[i]:offsets[i + 1]].
    """

    offsets: np.ndarray
    places: np.ndarray

    def counts(self) -> np.ndarray:
        """How many positives each query has, int64 (Q,)."""
        return np.diff(self.offsets)

    def owners(self) -> np.ndarray:
        """Whose each place is, int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts())

    def ordinals(self) -> np.ndarray:
        """1 for a query's first place, 2 for its second, ..., int64."""
        return np.arange(1, len(self.places) + 1) - np.repeat(self.offsets[:-1], self.counts())

    def first(self) -> np.ndarray:
        """The best positive's place, int64 (Q,); 0 without one."""
        there = self.counts() > 0
        out = np.zeros(len(there), np.int64)
        out[there] = self.places[self.offsets[:-1][there]]
        return out

    @classmethod
    def of_counts(cls, heights: np.ndarray, counts: np.ndarray) -> "Positions":
        """From scores of positives and how many items score at least as high.

        Args:
            heights: float (B, P), ascending, then inf; counts: int (B, P), without ignored items.
        """
        found = np.isfinite(heights)
        number = found.sum(1)
        column = np.arange(heights.shape[1])
        # of positives that tie the last one's count is what its place is
        places = counts - as_high(heights, heights, number) + number[:, None] - column
        offsets = np.concatenate([[0], np.cumsum(number)])
        return cls(offsets, places[:, ::-1][found[:, ::-1]].astype(np.int64))

    @classmethod
    def joined(cls, parts: list["Positions"]) -> "Positions":
        """Those of one query after the other."""
        counts = np.concatenate([part.counts() for part in parts])
        places = np.concatenate([part.places for part in parts])
        return cls(np.concatenate([[0], np.cumsum(counts)]), places)


def as_high(heights: np.ndarray, thresholds: np.ndarray, number: np.ndarray) -> np.ndarray:
    """How many of a row's heights, ascending, then inf, are >= each threshold: (B, P).

    Args:
        number: int (B,), how many heights are not inf.
    """
    if not heights.size:
        return np.zeros(thresholds.shape, np.int64)
    rows = (torch.from_numpy(np.ascontiguousarray(x)) for x in (heights, thresholds))
    return number[:, None] - torch.searchsorted(*rows).numpy()


def positions(
    query: np.ndarray,
    gallery: np.ndarray,
    relevances: Mapping[str, Relevance],
    metric: str = "cosine",
) -> dict[str, Positions]:
    """Of each reading of what is relevant.

    Args:
        query: float (Q, D); gallery: float (G, D), also a memory-mapped file.
        relevances: readings by name, each of these Q queries and G items.

    Raises BctError for embeddings that are not numbers.
    """
    readings = Readings(relevances, len(query))
    products = Products(query, gallery, metric)
    found: list[dict[str, Positions]] = []
    for queries, scores in _blocks(products):

        def work(part: slice, queries: slice = queries, scores: np.ndarray = scores) -> dict:
            rows = np.arange(queries.start + part.start, queries.start + part.stop)
            return readings.of_scores(scores[part], rows, products)

        found += in_threads(work, len(scores), readings.queries_at_once(len(gallery)))
    return {name: Positions.joined([part[name] for part in found]) for name in relevances}


def _blocks(products: Products) -> Iterator[tuple[slice, np.ndarray]]:
    """(queries, their scores float32 (B, G)), the memory of which is used again."""
    number, gallery = len(products.query), len(products.gallery)
    block = max(1, min(number, SCORES // gallery))
    memory = torch.empty(block, gallery)
    buffers = make_queue(lambda: products.buffer(ROWS))
    for start in range(0, number, block):
        queries = slice(start, min(start + block, number))
        scores = memory[: queries.stop - start]

        def fill(rows: slice, queries: slice = queries, scores: torch.Tensor = scores) -> None:
            with borrowed(buffers) as buffer:
                products.fill(scores[:, rows], queries, rows, buffer)

        each_in_threads(fill, gallery, even(gallery, ROWS))
        yield queries, scores.numpy()


class Readings:
    """What is relevant for Q queries, by one reading or several."""

    def __init__(self, relevances: Mapping[str, Relevance], queries: int):
        self.of = {name: by_query(relevance) for name, relevance in relevances.items()}
        self.most = sum(int(positives(x).max(initial=0)) for x in relevances.values())
        self.queries = queries

    def queries_at_once(self, gallery: int) -> int:
        """How many queries a thread takes."""
        width = 4 * gallery + 16 * self.most  # of the scores there are copies
        share = SCORES // torch.get_num_threads() // width
        return max(1, min(share, -(-self.queries // torch.get_num_threads())))

    def of_scores(
        self, scores: np.ndarray, queries: np.ndarray, products: Products | None = None
    ) -> dict[str, Positions]:
        """Positions of some queries, int (B,), by their scores with the whole gallery, float
        (B, G).

        Args:
            products: what the scores are; near ties are settled then.
        """
        sides = {name: of(queries) for name, of in self.of.items()}
        together = _united([side.positive for side in sides.values()])
        heights = heights_of(scores, together)
        if not heights.size:
            return {name: Positions.of_counts(heights, heights) for name in sides}
        ranked = np.sort(scores, axis=1)
        counts = as_high(ranked, heights, np.full(len(ranked), ranked.shape[1]))
        if products is not None and products.cosine:
            lengths, dimensions = products.lengths[queries], products.query.shape[1]

            def exact(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
                return products.exact(queries[rows], items)

            scores = settled(scores, ranked, heights, counts, together, lengths, dimensions, exact)
            heights = heights_of(scores, together)
        return _of_counts(scores, heights, counts, sides)


def _of_counts(
    scores: np.ndarray, heights: np.ndarray, counts: np.ndarray, sides: Mapping[str, ByItem]
) -> dict[str, Positions]:
    """Positions by each reading.

    Args:
        scores: float (B, G); heights: float (B, P), those of all readings' positives, ascending,
            then inf; counts: int (B, P), how many items of the whole gallery are as high.
    """
    out, all_heights = {}, torch.from_numpy(heights)
    for name, (positive, ignored) in sides.items():
        found = heights_of(scores, positive)
        at = torch.searchsorted(all_heights, torch.from_numpy(found))
        of_reading = np.take_along_axis(counts, at.clamp(max=heights.shape[1] - 1).numpy(), axis=1)
        others = as_high(heights_of(scores, ignored), found, ignored.counts())
        out[name] = Positions.of_counts(found, of_reading - others)
    return out


def _united(sides: list[Rows]) -> Rows:
    """The rows of all, each once per query."""
    if len(sides) == 1:
        return sides[0]
    most = 1 + max(int(side.rows.max(initial=0)) for side in sides)
    names = np.sort(np.concatenate([side.owners() * most + side.rows for side in sides]))
    names = names[np.diff(names, prepend=-1) > 0]
    owner, rows = np.divmod(names, most)
    counts = np.bincount(owner, minlength=len(sides[0].offsets) - 1)
    return Rows(np.concatenate([[0], np.cumsum(counts)]), rows)
