"""Scores of queries with gallery rows as they are stored: no copy of the gallery is made.

By cosine the stored rows are multiplied as they are, and a column of scores is divided by its row's
length afterwards: a gallery is read once and written nowhere. A query's own length orders nothing:
it is left in, one rounding less. A memory-mapped gallery is read from its file block by block, so
that its pages do not count as this process's memory.
"""

import mmap
from collections.abc import Callable

import numpy as np
import torch

from bct.metrics.blocks import factors
from bct.rows import is_odd, read_rows, read_stored, refuse_not_finite, unit_rows

ROWS = 1 << 11  # of the gallery that a thread multiplies at once
_PAIRS = 1 << 11  # of which a thread holds both rows


def even(total: int, block: int) -> int:
    """The size of blocks, at most `block`, of which each thread has as many."""
    threads = torch.get_num_threads()
    return -(-total // (threads * -(-total // (threads * block))))


class Products:
    """Scores of Q queries with the rows of a gallery, float32: those that bct.metrics.retrieval has
    times `lengths`, float32 (Q,), which are 1 by l2.

    Args:
        query: float (Q, D); gallery: float (G, D), of any float type; metric: "cosine" or "l2".
            By l2 a float32 copy of both is made.

    Raises BctError for a query that is not finite.
    """

    def __init__(self, query: np.ndarray, gallery: np.ndarray, metric: str = "cosine"):
        self.cosine = metric == "cosine"
        if self.cosine:
            with np.errstate(over="ignore"):
                rows = np.array(query, np.float32, order="C")
            rows, self.lengths = _lengths(rows, lambda odd: query[odd])
            self.query, self.gallery = torch.from_numpy(rows), gallery
            self.given = query
        else:
            self.query = factors(query, np.arange(len(query)), metric)[0]
            self.lengths = np.ones(len(query), np.float32)
            self.gallery = factors(gallery, np.arange(len(gallery)), metric)[1].numpy()

    def buffer(self, rows: int) -> torch.Tensor | None:
        """Memory of a thread for so many rows of a gallery that has to be read; None: it is there,
        as float32."""
        x = self.gallery
        there = x.dtype == np.float32 and x.flags.c_contiguous and x.flags.writeable
        return None if there and not _is_file(x) else torch.empty(rows, x.shape[1])

    def fill(
        self, out: torch.Tensor, queries: slice, rows: slice, buffer: torch.Tensor | None
    ) -> None:
        """Writes the scores of some queries and gallery rows to out, float32 (B, R).

        Raises BctError for a gallery row that is not finite.
        """
        if buffer is None:
            x = np.asarray(self.gallery[rows])
        else:
            x = read_rows(self.gallery, rows, buffer[: rows.stop - rows.start].numpy())
        length = None
        if self.cosine:
            x, length = _lengths(x, lambda odd: read_stored(self.gallery, rows)[odd], rows.start)
        torch.mm(self.query[queries], torch.from_numpy(x).T, out=out)
        if length is not None:
            out /= torch.from_numpy(length)

    def exact(self, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs by cosine, times the query's length, float64 (n,)."""
        out = np.empty(len(items))
        for start in range(0, len(items), _PAIRS):
            part = slice(start, start + _PAIRS)
            a, b = (
                _scaled(np.asarray(side[rows[part]]))
                for side, rows in ((self.given, queries), (self.gallery, items))
            )
            # equal rows have equal sums here, unlike by BLAS
            products, left, right = (np.einsum("nd,nd->n", *x) for x in ((a, b), (a, a), (b, b)))
            lengths = np.sqrt(left * right)
            out[part] = products / np.where(lengths > 0, lengths, 1)
        return out * self.lengths[queries]


def _scaled(rows: np.ndarray) -> np.ndarray:
    """As float64, none so small or large that its squares are not."""
    if rows.dtype == np.float64:
        return rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(float).tiny)
    return rows.astype(np.float64)


def _lengths(
    x: np.ndarray, stored: Callable[[np.ndarray], np.ndarray], first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, their lengths), both float32. Rows whose squares float32 does not hold become unit
    vectors of length 1, and so do zeros, which stay.

    Args:
        x: float32 (B, D). stored: the rows that it is asked for, of their own type; first: the
            number of row 0, for a message.
    """
    with np.errstate(all="ignore"):  # of rows that are done again below
        length = np.sqrt(np.einsum("nd,nd->n", x, x))
    odd = np.flatnonzero(is_odd(length))
    if len(odd):
        x = x.copy()
        x[odd] = unit_rows(stored(odd))
        refuse_not_finite(x[odd], name=lambda k: first + odd[k])
        length[odd] = 1
    return x, length


def _is_file(features: np.ndarray) -> bool:
    """Whether rows are read from a file, see bct.rows.read_stored."""
    return isinstance(features, np.memmap) and isinstance(features.base, mmap.mmap)
