"""Relevance: which gallery items are positive for a query, and which it ignores.

A positive ought to be found. An ignored item is taken out of the query's ranking before anything is
counted, wherever it stands: the query's own image, a junk image of ROxford, an image of the same
person by the same camera in Market-1501. All others are negative.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bct.errors import BctError


class Rows(NamedTuple):
    """Gallery rows of each of Q queries: those of query i are rows[offsets[i]:offsets[i + 1]].

    offsets: int64 (Q + 1,), from 0 to the length of rows; rows: int64.
    """

    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int] | np.ndarray]) -> "Rows":
        """From one sequence of gallery rows per query."""
        arrays = [np.asarray(rows, np.int64) for rows in lists]
        offsets = np.cumsum([0, *map(len, arrays)])
        return cls(offsets, np.concatenate([np.zeros(0, np.int64), *arrays]))

    def counts(self) -> np.ndarray:
        """How many each query has, int64 (Q,)."""
        return np.diff(self.offsets)

    def owners(self) -> np.ndarray:
        """Whose each entry of rows is, int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts())

    def of(self, queries: np.ndarray) -> "Rows":
        """Those of some queries, int (B,), in their order."""
        return Rows(*_ranges(self.rows, self.offsets[queries], self.counts()[queries]))

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows int64 (Q, P), there bool (Q, P)): P is the most of a query, the rest is row 0."""
        counts = self.counts()
        there = np.arange(counts.max(initial=0)) < counts[:, None]
        rows = np.zeros(there.shape, np.int64)
        rows[there] = self.rows
        return rows, there


class ByItem(NamedTuple):
    """Positive and ignored gallery rows of each query, in any order; none is both."""

    positive: Rows
    ignored: Rows


class ByClass(NamedTuple):
    """Items of the query's class are positive.

    query: (Q,), any ids; gallery: (G,), ids that mean the same. leave_one_out: query i and gallery
    row i are the same item, which query i ignores.
    """

    query: np.ndarray
    gallery: np.ndarray
    leave_one_out: bool = False


Relevance = ByClass | ByItem


def positives(relevance: Relevance) -> np.ndarray:
    """How many positives each query has, int64 (Q,)."""
    if isinstance(relevance, ByItem):
        return relevance.positive.counts()
    query, gallery = numbered(relevance)
    sizes = np.bincount(gallery, minlength=query.max(initial=-1) + 1)
    return sizes[query] - relevance.leave_one_out


def by_query(relevance: Relevance) -> Callable[[np.ndarray], ByItem]:
    """A function of some queries, int (B,), that gives their positive and ignored rows.

    All queries' positives together may be more than the memory holds, those of a block are not.
    """
    if isinstance(relevance, ByItem):
        return lambda queries: ByItem(*(side.of(queries) for side in relevance))
    query, gallery = numbered(relevance)
    order = np.argsort(gallery, kind="stable")  # items of a class lie side by side
    sizes = np.bincount(gallery, minlength=query.max(initial=-1) + 1)
    starts = np.cumsum(sizes) - sizes

    def of(queries: np.ndarray) -> ByItem:
        own = np.asarray(queries) if relevance.leave_one_out else np.zeros(0, np.int64)
        of_class = query[queries]
        found = Rows(*_ranges(order, starts[of_class], sizes[of_class]))
        if not relevance.leave_one_out:
            return ByItem(found, Rows(np.zeros(len(queries) + 1, np.int64), own))
        others = found.rows != own[found.owners()]
        offsets = found.offsets - np.arange(len(own) + 1)
        return ByItem(Rows(offsets, found.rows[others]), Rows(np.arange(len(own) + 1), own))

    return of


def numbered(relevance: ByClass) -> tuple[np.ndarray, np.ndarray]:
    """The labels of queries and gallery as 0, 1, ..., int64."""
    if relevance.leave_one_out:
        labels = np.unique(relevance.query, return_inverse=True)[1]
        return labels, labels
    both = np.concatenate([relevance.query, relevance.gallery])
    labels = np.unique(both, return_inverse=True)[1]
    return labels[: len(relevance.query)], labels[len(relevance.query) :]


def check(relevance: Relevance, queries: int, gallery: int) -> None:
    """Raises BctError for a relevance of other numbers of items, or one that contradicts itself."""
    if isinstance(relevance, ByClass):
        return _check_labels(relevance, queries, gallery)
    for name, (offsets, rows) in zip(relevance._fields, relevance, strict=True):
        ends = np.shape(offsets) == (queries + 1,) and offsets[0] == 0 and offsets[-1] == len(rows)
        if not ends or (np.diff(offsets) < 0).any():
            raise BctError(
                f"the {name} rows are not those of {queries} queries",
                "give one list of gallery rows per query, see relevance.Rows",
            )
        if len(rows) and not (rows.min() >= 0 and rows.max() < gallery):
            raise BctError(
                f"a row of the {name} ones lies outside the gallery of {gallery} items",
                "count the gallery's items from 0",
            )
    named = [side.owners() * gallery + side.rows for side in relevance]
    if len(np.unique(np.concatenate(named))) < sum(map(len, named)):
        raise BctError(
            "a query names a gallery item twice, or as positive and as ignored",
            "name each item once per query",
        )


def _check_labels(relevance: ByClass, queries: int, gallery: int) -> None:
    if relevance.leave_one_out and gallery != queries:
        raise BctError(
            f"there are {queries} queries and {gallery} gallery rows",
            "for leave-one-out give both models' embeddings of the same items",
        )
    sides = (("query", relevance.query, queries), ("gallery", relevance.gallery, gallery))
    for name, labels, number in sides:
        if np.shape(labels) != (number,):
            raise BctError(
                f"there are {number} {name} embeddings, their labels are {np.shape(labels)}",
                "give one row and one label per item",
            )
    if relevance.leave_one_out and not np.array_equal(relevance.query, relevance.gallery):
        raise BctError(
            "queries and gallery have different labels",
            "leave-one-out has the same items on both sides, in the same order",
        )


def _ranges(
    rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, those entries of rows that lie in the ranges starts..starts + sizes - 1)."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
    return offsets, rows[at]
