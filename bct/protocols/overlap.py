"""What is in both sets of a search: it would find itself, whatever the model.

Images are known by their bytes as they are stored: a file under another name is the same image, one
that was encoded again is not. Only images are read of whose length the other side has one.
"""

import os
from collections import Counter
from collections.abc import Callable, Hashable

import numpy as np

from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import sha256
from bct.metrics.relevance import Relevance, Rows

_BLOCK = 1 << 13  # rows
_MOST = 1 << 24  # of a query and its own image, so that they take no more than 128 MiB


def shared_images(queries: ImageSet, gallery: ImageSet) -> Rows:
    """The gallery rows of each query that hold its own image."""
    asked, there = np.arange(len(queries)), np.arange(len(gallery))
    for key in (_length, _digest):
        asked, there, keys = _met(queries, asked, gallery, there, key)
    rows_of: dict[Hashable, list[int]] = {}
    for row, own in zip(there.tolist(), keys[1], strict=True):
        rows_of.setdefault(own, []).append(row)
    if sum(len(rows_of[own]) for own in keys[0]) > _MOST:
        copies = Counter(keys[0]).most_common(1)[0][1]
        raise BctError(
            f"{copies:,} images of {queries.path} are one and the same picture, as are many of "
            f"{gallery.path}",
            "take the copies out of both",
        )
    lists: list[list[int]] = [[] for _ in range(len(queries))]
    for row, own in zip(asked.tolist(), keys[0], strict=True):
        lists[row] = rows_of[own]
    return Rows.of_lists(lists)


def twins(images: ImageSet) -> tuple[int, tuple[int, int] | None]:
    """How many images are the same as another one of the set, and the first two that are."""
    rows = np.arange(len(images))
    for key in (_length, _digest):
        keys = [key(images, row) for row in rows.tolist()]
        number = Counter(keys)
        kept = [k for k, own in enumerate(keys) if number[own] > 1]
        rows, keys = rows[kept], [keys[k] for k in kept]
    if not keys:
        return 0, None
    return len(rows), (int(rows[0]), int(rows[keys.index(keys[0], 1)]))


def _met(
    queries: ImageSet,
    asked: np.ndarray,
    gallery: ImageSet,
    there: np.ndarray,
    key: Callable[[ImageSet, int], Hashable],
) -> tuple[np.ndarray, np.ndarray, list[list[Hashable]]]:
    """Those of these rows whose key the other side has, too; and their keys."""
    sides = (queries, asked), (gallery, there)
    keys = [[key(images, row) for row in rows.tolist()] for images, rows in sides]
    both = set(keys[0]) & set(keys[1])
    kept = [[k for k, own in enumerate(side) if own in both] for side in keys]
    left = [[side[k] for k in keep] for side, keep in zip(keys, kept, strict=True)]
    return asked[kept[0]], there[kept[1]], left


def _length(images: ImageSet, row: int) -> int:
    if hasattr(images, "file"):
        try:
            return os.stat(images.file(row)).st_size
        except OSError:
            pass  # reading it says what is wrong
    return len(_stored(images, row))


def _digest(images: ImageSet, row: int) -> str:
    return sha256(bytes(_stored(images, row)))


def _stored(images: ImageSet, row: int) -> bytes | memoryview:
    """An image's bytes, encoded where they are."""
    if hasattr(images, "payload"):
        return images.payload(row)[0]
    return images.image(row).tobytes()


def with_a_twin(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Which rows (Q, D) are some row of (G, D), bit by bit, and not all zeros: bool (Q,)."""
    same = np.isin(_hashes(query), _hashes(gallery))
    found = np.flatnonzero(same)
    same[found] = query[found].any(1)
    return same


def _hashes(rows: np.ndarray) -> np.ndarray:
    """A number for each row's bits, uint64 (N,): a sum of its values' bits times odd numbers."""
    factors = np.random.default_rng(0).integers(0, 1 << 63, rows.shape[1], np.uint64) * 2 + 1
    out = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _BLOCK):
        block = np.asarray(rows[start : start + _BLOCK], np.float64, order="C")
        mixed = block.view(np.uint64) * factors
        out[start : start + _BLOCK] = (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)
    return out


def equal_vectors(
    label: str, query: np.ndarray, gallery: np.ndarray, relevance: Relevance
) -> str | None:
    """Of two sets (Q, D), (G, D): what to say of queries whose vector is that of another image in
    the gallery; None if there is none, or if each is searched among all the others.

    Raises BctError if all are: then queries and gallery are one file, or have one order.
    """
    if getattr(relevance, "leave_one_out", False):
        return None
    same = with_a_twin(query, gallery)
    if relevance.ignored is not None:
        same &= relevance.ignored.counts() == 0
    if same.all():
        raise BctError(
            f"{label}: each query's vector is in the gallery, but its image is not",
            "give the embeddings of both sets, queries.npy,gallery.npy",
        )
    if not same.any():
        return None
    return (
        f"{label}: {same.sum():,} queries have the very vector of another image in the gallery, "
        f"which they find first; the first is query {same.argmax()}."
    )
