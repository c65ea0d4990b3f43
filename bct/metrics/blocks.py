"""What every ranking shares: blocks of scores, and counts of who scores at least as high.

Scores are float32 products, computed in blocks. Each is computed once, and that number serves as
threshold and is counted: the same two rows multiplied in a block of another shape may differ in the
last bit. A thread does all of a block: product, transpose, sort and search.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from bct.errors import BctError
from bct.rows import refuse_not_finite, single_rows, unit_rows

SIDE = 1 << 12  # rows of a block of scores
SCORES = 1 << 25  # numbers held at once: of all threads' blocks, or of all positives
CHUNK = 1 << 16  # scores that are sorted at once: they stay in the cache
_SHORT = 1e-25  # a score of that size is a sum of numbers that float32 hardly holds
LANES = 16  # numbers of a cache line: products and transposes of whole lines are a third faster


def make_queue(make: Callable[[], Any]) -> SimpleQueue:
    """For each thread memory that is made here: to ask for it anew would cost every block."""
    buffers: SimpleQueue = SimpleQueue()
    for _ in range(torch.get_num_threads()):
        buffers.put(make())
    return buffers


def make_buffers(*sizes: int) -> SimpleQueue:
    """For each thread float32 memory of these sizes."""
    return make_queue(lambda: [torch.empty(size) for size in sizes])


@contextmanager
def borrowed(buffers: SimpleQueue) -> Iterator[Any]:
    """A thread's memory, given back in any case: the others would wait for it."""
    memory = buffers.get()
    try:
        yield memory
    finally:
        buffers.put(memory)


def no_results(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(ap, rank) of n queries without a positive."""
    return np.full(n, np.nan), np.zeros(n, np.int64)


def factors(
    features: np.ndarray, order: np.ndarray, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 rows in this order, as queries and as gallery, whose products are the scores."""
    rows = features[order]
    if metric == "cosine":
        x = torch.from_numpy(unit_rows(rows))
        refuse_not_finite(x, name=lambda row: order[row])
        return x, x
    x = torch.from_numpy(single_rows(rows, name=lambda row: order[row]))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    half = norm.square().div(2).float()
    if not torch.isfinite(4 * half).all():  # no score may overflow
        raise BctError("the embeddings are too long for float32", "normalise them")
    if norm.any() and half.max() < _SHORT:  # nor vanish
        raise BctError("the embeddings are too short for float32", "normalise them")
    one = torch.ones_like(half)
    return torch.cat([x, -half, one], 1), torch.cat([x, one, -half], 1)


def round_up(n: int) -> int:
    """n rounded up to whole cache lines."""
    return -(-n // LANES) * LANES


def padded(rows: torch.Tensor) -> torch.Tensor:
    """With rows of zeros after the last, so that any block of them can be rounded up."""
    return torch.nn.functional.pad(rows, (0, 0, 0, LANES - 1))


def product(a: torch.Tensor, b: torch.Tensor, columns: int, buffer: torch.Tensor) -> np.ndarray:
    """a b^T, float32 (A, B), in the buffer's memory. From `columns` on it holds -inf, which is
    below every threshold."""
    out = buffer[: len(a) * len(b)].view(len(a), len(b))
    torch.mm(a, b.T, out=out)[:, columns:] = -np.inf
    return out.numpy()


def count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
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


def precision(positives: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
