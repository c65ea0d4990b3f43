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
    row i are the same item, which query i ignores. ignored: further rows that a query ignores, such
    as its own image in a gallery that has some of the queries; None: no others.
    """

    query: np.ndarray
    gallery: np.ndarray
    leave_one_out: bool = False
    ignored: Rows | None = None


Relevance = ByClass | ByItem


def positives(relevance: Relevance) -> np.ndarray:
    """How many positives each query has, int64 (Q,)."""
    if isinstance(relevance, ByItem):
        return relevance.positive.counts()
    query, gallery = numbered(relevance)
    sizes = np.bincount(gallery, minlength=query.max(initial=-1) + 1)
    number = sizes[query] - relevance.leave_one_out
    if relevance.ignored is not None:
        owner = relevance.ignored.owners()
        own = query[owner] == gallery[relevance.ignored.rows]
        number -= np.bincount(owner[own], minlength=len(query))
    return number


def unopposed(relevance: Relevance, gallery: int) -> np.ndarray:
    """To which queries all items are positive, bool (Q,): whatever they find, it is right.

    Args:
        gallery: G, how many items there are.
    """
    ignored = relevance.ignored
    counted = gallery - (0 if ignored is None else ignored.counts())
    if isinstance(relevance, ByClass):
        counted = counted - relevance.leave_one_out
    found = positives(relevance)
    return (found > 0) & (found == counted)


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
        of_class = query[queries]
        found = Rows(*_ranges(order, starts[of_class], sizes[of_class]))
        ignored = _ignored(relevance, np.asarray(queries))
        owner, items = found.owners(), len(gallery)
        taken = ignored.owners() * items + ignored.rows
        others = np.isin(owner * items + found.rows, taken, invert=True)
        return ByItem(_chosen(found, others), ignored)

    return of


def _ignored(relevance: ByClass, queries: np.ndarray) -> Rows:
    """What some queries ignore."""
    own = Rows(np.arange(len(queries) + 1), queries)
    if relevance.ignored is None:
        return own if relevance.leave_one_out else _chosen(own, np.zeros(len(queries), bool))
    further = relevance.ignored.of(queries)
    if not relevance.leave_one_out:
        return further
    owner = np.concatenate([own.owners(), further.owners()])
    by_owner = np.argsort(owner, kind="stable")
    rows = np.concatenate([own.rows, further.rows])[by_owner]
    return Rows(own.offsets + further.offsets, rows)


def _chosen(rows: Rows, chosen: np.ndarray) -> Rows:
    """Some entries, bool (len(rows.rows),), of each query's rows."""
    counts = np.bincount(rows.owners()[chosen], minlength=len(rows.offsets) - 1)
    return Rows(np.concatenate([[0], np.cumsum(counts)]), rows.rows[chosen])


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
    for name, rows in zip(relevance._fields, relevance, strict=True):
        _check_rows(name, rows, queries, gallery)
    _check_distinct(relevance, gallery)


def _check_rows(name: str, given: Rows, queries: int, gallery: int) -> None:
    offsets, rows = given
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


def _check_distinct(sides: Sequence[Rows], gallery: int) -> None:
    named = np.sort(np.concatenate([side.owners() * gallery + side.rows for side in sides]))
    if (named[1:] == named[:-1]).any():
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
    if relevance.ignored is not None:
        _check_rows("ignored", relevance.ignored, queries, gallery)
        own = Rows(np.arange(queries + 1), np.arange(queries))
        _check_distinct([relevance.ignored, *[own] * relevance.leave_one_out], gallery)


def _ranges(
    rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, those entries of rows that lie in the ranges starts..starts + sizes - 1)."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
    return offsets, rows[at]
