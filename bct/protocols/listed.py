"""What the readers of landmarks' and people's protocols share: lists of queries and of a gallery,
relevance by lists, and what has to be said of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bct.data.image_set import ImageSet, Joined
from bct.errors import BctError
from bct.metrics.relevance import ByItem, Relevance, Rows, positives
from bct.protocols.protocol import Protocol, Search
from bct.protocols.thumbnails import thumbnails_of

_NAMED = 5  # queries that a remark names


def listed_protocol(
    name: str,
    path: Path,
    queries: ImageSet,
    gallery: ImageSet,
    readings: Mapping[str, Relevance],
    precision: str,
    subjects: tuple[np.ndarray, np.ndarray],
    remarks: Sequence[str],
) -> Protocol:
    """A search of one set in another one.

    Args:
        path: of the lists, for messages.
        readings: relevances by name, the first by which verdicts are given; with a single one the
            search has no readings.
        precision: see Search. subjects: int64 (Q,) and (G,), whose an item is, -1 unknown.

    Queries without a positive are counted in a remark for each reading: no mean takes them in. A
    reading in which no query has one is left out. BctError if that is the first.
    """
    remarks, kept = [*remarks], {}
    main = next(iter(readings))
    for reading, relevance in readings.items():
        without = np.flatnonzero(positives(relevance) == 0)
        of = f" ({reading})" if len(readings) > 1 else ""
        if len(without) == len(queries):
            if reading == main:
                raise BctError(
                    f"none of the {len(queries):,} queries of {path} has a positive image{of}",
                    "give the lists of a protocol, in which queries have something to find",
                )
            remarks.append(f"No query has a positive image{of}: there are no such figures.")
            continue
        kept[reading] = relevance
        if len(without):
            named = ", ".join(
                os.path.basename(queries.describe(int(row))) for row in without[:_NAMED]
            )
            more = " and others" if len(without) > _NAMED else ""
            remarks.append(
                f"{len(without):,} of {len(queries):,} queries have no positive image{of} and "
                f"count in no mean: {named}{more}."
            )
    queries.labels, gallery.labels = subjects
    images = Joined([queries, gallery])
    first, second = np.split(np.arange(len(images)), [len(queries)])
    return Protocol(
        name,
        images,
        search=Search(first, second, kept[main], precision, kept if len(readings) > 1 else {}),
        subjects=images.labels,
        unit="landmarks",
        thumbnail=thumbnails_of(images),
        remarks=remarks,
    )


def restricted(rows: Rows, queries: np.ndarray, gallery: np.ndarray, size: int) -> Rows:
    """The same lists of some queries in a part of the gallery, as rows of that part.

    Args:
        queries, gallery: int64, ascending, which ones are left. size: of the whole gallery.
    """
    place = np.full(size, -1)
    place[gallery] = np.arange(len(gallery))
    chosen = rows.of(queries)
    found = place[chosen.rows]
    counts = np.bincount(chosen.owners()[found >= 0], minlength=len(queries))
    return Rows(np.concatenate([[0], np.cumsum(counts)]), found[found >= 0])


def merged(*lists: Sequence[np.ndarray]) -> Rows:
    """One list per query of several ones."""
    return Rows.of_lists([np.concatenate(parts) for parts in zip(*lists, strict=True)])


def landmarks(relevance: ByItem, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """Which landmark each query and each of the gallery's images shows, int64 (Q,), (G,).

    Lists do not say it. Queries show the same one if half of the positives that one of the two has
    are those of both; of an image it is the one whose queries name it most. Numbered in the
    queries' order; -1 where it is not known.
    """
    from scipy.sparse import csr_matrix  # a tenth of a second that training need not wait for
    from scipy.sparse.csgraph import connected_components

    offsets, rows = relevance.positive
    sizes = np.diff(offsets)
    named = csr_matrix((np.ones(len(rows)), rows, offsets), shape=(len(sizes), gallery))
    both = (named @ named.T).tocoo()
    same = 2 * both.data >= sizes[both.row] + sizes[both.col] - both.data
    ends = both.row[same], both.col[same]
    graph = csr_matrix((np.ones(len(ends[0])), ends), shape=both.shape)
    part = connected_components(graph, directed=False)[1]
    known, first = np.unique(part[sizes > 0], return_index=True)
    number = np.full(len(sizes), -1)  # a query without positives is a part of its own
    number[known[np.argsort(first)]] = np.arange(len(known))
    of_query, of_item = number[part], np.full(gallery, -1)
    pairs, votes = np.unique(
        rows * len(known) + of_query[relevance.positive.owners()], return_counts=True
    )
    item, landmark = np.divmod(pairs, max(len(known), 1))
    order = np.lexsort((-landmark, votes))  # the last one that is written stays
    of_item[item[order]] = landmark[order]
    return of_query, of_item
