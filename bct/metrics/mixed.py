"""Searches in galleries whose rows are of several model versions, for many mixtures at once.

A curve is a list of mixtures: at each of its K points every gallery row has a version. Rows that
have the same versions at all points are a group; a backfill in B steps has B + 1 of them. In blocks
of queries each version's scores are computed once. How many items of a group and version score at
least as high as each positive is counted once, and the count at a point is a sum:

    #{items >= s at point k} = sum over groups u of  #{items of u, in their version at k, >= s}

So a point costs no product and no sort. See bct.metrics.ranking for what is made of the counts, and
for ties. Scores are float32: what near_ties settles for a single search is left to chance here, and
moves a mean by some 1e-7. Memory: float32 copies of the embeddings and less than 1 GiB, however
many items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bct.errors import BctError
from bct.metrics.average_precision import check_way
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
from bct.metrics.positions import Positions
from bct.metrics.relevance import (
    ByItem,
    Relevance,
    Rows,
    by_query,
    numbered,
    positives,
    unopposed,
)
from bct.metrics.retrieval import Retrieval, check_searched, figures_of, summary
from bct.threads import each_in_threads


def retrieve_mixed(
    query: np.ndarray,
    galleries: Sequence[np.ndarray],
    curves: Sequence[np.ndarray],
    relevance: Relevance,
    metric: str = "cosine",
    ks: tuple[int, ...] = (1, 5),
    block: int = SIDE,
    way: str = "steps",
) -> list[list[Retrieval]]:
    """What retrieve gives for each mixture of each curve, in one pass over blocks of queries.

    Args:
        query: float (Q, D).
        galleries: per version float (G, D), the embeddings of all items by that version. Rows of a
            version that no mixture has are not looked at, but have to be numbers.
        curves: each int (K, G): the version of every gallery row, 0, 1, ..., at each point. The
            fewer different columns a curve has, the faster it is.
        relevance, metric, ks, way: as for retrieve. The results have no precision at k.
        block: at most so many queries at once.

    Raises:
        BctError: as retrieve; galleries of different sizes; curves of other items or versions.
    """
    check_way(way)
    for gallery in galleries:
        check_searched(query, gallery, relevance, metric, ks, way)
    parts = [_Curve.of(curve, len(galleries), len(galleries[0])) for curve in curves]
    results = [[no_results(len(query)) for _ in curve] for curve in curves]
    rows, columns = _orders(relevance, len(galleries[0]))
    if len(rows):
        ranks = _Ranks(query, galleries, rows, columns, relevance, metric, way)
        ranks.count([part.ordered(columns) for part in parts], results, block)
    apart = unopposed(relevance, len(galleries[0]))
    return [[summary(*found, ks, apart) for found in points] for points in results]


def _orders(relevance: Relevance, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """(queries that have a positive, gallery rows), in the orders of ranking's blocks."""
    number = positives(relevance)
    if isinstance(relevance, ByItem):
        rows, columns = np.argsort(number, kind="stable"), np.arange(gallery)
    else:
        labels = numbered(relevance)
        rows, columns = (np.argsort(side, kind="stable") for side in labels)
    return rows[number[rows] > 0], columns


class _Curve(NamedTuple):
    """versions: int (K, G), in the order of the scores' columns. groups: columns that have the same
    versions at all points; patterns: int (K, groups), their versions."""

    versions: np.ndarray
    groups: list[np.ndarray]
    patterns: np.ndarray

    @classmethod
    def of(cls, versions: np.ndarray, number: int, gallery: int) -> "_Curve":
        versions = np.asarray(versions)
        if versions.ndim != 2 or versions.shape[1] != gallery or not len(versions):
            raise BctError(
                f"a curve's versions are {versions.shape} for {gallery} gallery rows",
                "give the version of every gallery row at every point, (points, rows)",
            )
        whole = versions.dtype.kind in "biu"
        if not whole or versions.min() < 0 or versions.max() >= number:
            raise BctError(
                f"a curve has versions {versions.min()} to {versions.max()} of {number}",
                "give a gallery for each version, and count versions from 0",
            )
        versions = versions.astype(np.int8 if number < 128 else np.int32)
        return cls(versions, [], versions[:, :0])

    def ordered(self, columns: np.ndarray) -> "_Curve":
        """The same for gallery rows in another order, with its groups."""
        versions = np.ascontiguousarray(self.versions[:, columns])
        code = np.zeros(len(columns), np.int64)
        for row in versions:
            code = np.unique(code * (int(row.max()) + 1) + row, return_inverse=True)[1]
        order = np.argsort(code, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
        return _Curve(versions, groups, versions[:, [group[0] for group in groups]])


class _Ranks:
    """Scores and counts of queries `rows` in galleries of rows `columns`, block by block."""

    def __init__(self, query, galleries, rows, columns, relevance, metric, way):
        self.rows, self.gallery, self.way = rows, len(columns), way
        self.items, self.most = by_query(relevance), int(positives(relevance)[rows].max())
        self.own = getattr(relevance, "leave_one_out", False)
        self.place = np.argsort(columns)  # where the scores' columns hold a gallery row
        self.query = factors(query, rows, metric)[0]
        width = round_up(self.gallery)
        self.versions = [
            padded(factors(gallery, columns, metric)[1])[:width] for gallery in galleries
        ]

    def count(self, curves: list[_Curve], results: list[list[tuple]], block: int) -> None:
        """Fills (ap, rank) of each point of each curve."""
        number, width = len(self.versions), round_up(self.gallery)
        points = max(len(curve.versions) for curve in curves)
        # the blocks of ranking.by_rows, so that the scores have the same bits, if memory allows
        share = SCORES // torch.get_num_threads()
        held = (number + 1) * width + ((points + 3) * number + 10) * self.most
        block = max(1, min(block, share // (width + 8 * (self.most + self.own)), 4 * share // held))
        size = min(block, len(self.rows)) * width
        buffers = make_buffers(*[size] * (number + 1))

        def work(part: slice) -> None:
            queries = self.rows[part]
            positive, ignored = self.items(queries)
            with borrowed(buffers) as memory:
                scores = [
                    product(self.query[part], gallery, self.gallery, buffer)
                    for gallery, buffer in zip(self.versions, memory, strict=False)
                ]
                for of_version in scores:
                    of_version[ignored.owners(), self.place[ignored.rows]] = -np.inf
                column, there = Rows(positive.offsets, self.place[positive.rows]).padded()
                for curve, points in zip(curves, results, strict=True):
                    found = _points(curve, scores, column, there, memory[-1], self.way)
                    for (ap, rank), figures in zip(points, found, strict=True):
                        ap[queries], rank[queries] = figures

        each_in_threads(work, len(self.rows), block)


def _points(
    curve: _Curve,
    scores: list[np.ndarray],
    column: np.ndarray,
    there: np.ndarray,
    buffer: torch.Tensor,
    way: str,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ap (B,), rank (B,)) at each point of a curve.

    Args:
        scores: per version float32 (B, G); column: int (B, P), where each query's positives are;
        there: bool (B, P), which of these there are.
    """
    heights = np.stack([np.take_along_axis(rows, column, axis=1) for rows in scores])  # (V, B, P)
    heights[:, ~there] = np.inf
    counts = _counts(curve, scores, heights, buffer)
    out = []
    for versions, of_point in zip(curve.versions, counts, strict=True):
        version = versions[column][None]  # (1, B, P)
        thresholds = np.take_along_axis(heights, version, axis=0)[0]
        count = np.take_along_axis(of_point, version, axis=0)[0]
        order = np.argsort(thresholds, axis=1)
        ordered = [np.take_along_axis(x, order, axis=1) for x in (thresholds, count)]
        if way == "steps":
            out.append(precision(*ordered))
        else:
            out.append(figures_of(Positions.of_counts(*ordered), way))
    return out


def _counts(
    curve: _Curve, scores: list[np.ndarray], heights: np.ndarray, buffer: torch.Tensor
) -> np.ndarray:
    """How many items score at least as high as each positive in each version, at each point.

    Args:
        scores: per version float32 (B, G); heights: float32 (V, B, P); buffer: memory for B x G.

    Returns:
        int32 (K, V, B, P).
    """
    (number, rows, width), points = heights.shape, len(curve.versions)
    lowest = heights.min(axis=(0, 2))[:, None]
    thresholds = np.concatenate([lowest, *heights], axis=1)  # the lowest first, as counting wants
    change = np.zeros((points, rows, number * width), np.int32)  # from the point before
    for columns, pattern in zip(curve.groups, curve.patterns.T, strict=True):
        for version in np.unique(pattern):
            part = buffer[: rows * len(columns)].view(rows, len(columns)).numpy()
            np.take(scores[version], columns, axis=1, out=part, mode="clip")
            found = count_at_least(part, thresholds)[:, 1:]
            holds = np.diff(pattern == version, prepend=False, append=False)
            for point in np.flatnonzero(holds[:-1]):
                sign = 1 if pattern[point] == version else -1
                change[point] += sign * found
    counts = np.cumsum(change, axis=0, dtype=np.int32, out=change)
    return counts.reshape(points, rows, number, width).transpose(0, 2, 1, 3)
