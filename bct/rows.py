"""The rows of embeddings, on disk or in memory, block by block: of unit length, and checked.

One rule everywhere. A row that is not finite is refused and named. A row of zeros is no embedding:
it is counted and named, scores 0 and stays out of fits, averages and masks. Rows that are all zeros
are refused. Scores are of unit vectors in float32, and they are made here.
"""

import mmap
from collections.abc import Callable, Iterator

import numpy as np
import torch

from bct.errors import BctError
from bct.threads import each_in_threads

BLOCK = 1 << 13  # rows
_CACHED = 1 << 11  # rows of one thread that stay in its cache while it works on them
_SHORT, _LONG = 1e-15, 1e15  # between these the square of a length is exact enough in float32
_NAMED = 5  # rows that a message names
_AGAIN = "check the weights and the precision (--amp off), then compute that embedding again"


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Each row of any float type and length, (n, D), divided by its length: float32 (n, D).

    A row of zeros stays, one that is not finite becomes NaN.
    """
    x = _floats(x)
    out = np.empty(x.shape, np.float32)
    if len(x) <= _CACHED:  # threads cost more than they save
        _divide(x, out)
    else:
        each_in_threads(lambda rows: _divide(x[rows], out[rows]), len(x), _CACHED)
    return out


def _divide(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes unit rows to out, and returns the numbers of those that are odd, (k,)."""
    # rows side by side: equal ones give the same bits, however the whole is laid out
    x = np.ascontiguousarray(x, None if x.dtype.itemsize >= 4 else np.float32)
    with np.errstate(all="ignore"):  # of rows that are done again below
        length = np.linalg.norm(x, axis=1, keepdims=True)
        np.divide(x, length, out=out, casting="same_kind")
        odd = np.flatnonzero(is_odd(length[:, 0]))
        if len(odd):
            out[odd] = _scaled(x[odd])
    return odd


def _scaled(x: np.ndarray) -> np.ndarray:
    """unit_rows of the shortest and longest rows: divided by their largest number first, none has a
    square too small or too large for its type."""
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0)
    x = x / np.where(largest == 0, 1, largest)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)


def lengths(x: np.ndarray) -> np.ndarray:
    """The length of each row of any float type, float64 (n,); inf where even that has no room."""
    x = _floats(x)
    x = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    with np.errstate(all="ignore"):
        length = np.linalg.norm(x, axis=1).astype(np.float64)
        odd = np.flatnonzero(is_odd(length))
        if len(odd):
            largest = np.abs(x[odd]).max(axis=1, keepdims=True, initial=0).astype(np.float64)
            unit = x[odd] / np.where(largest == 0, 1, largest)
            length[odd] = np.linalg.norm(unit, axis=1) * largest[:, 0]
    return length


def is_odd(length: np.ndarray) -> np.ndarray:
    """Which lengths need a closer look, bool (n,): zeros, NaN, and where squares are not exact."""
    return ~((length > _SHORT) & (length < _LONG))


def _floats(x: np.ndarray) -> np.ndarray:
    """An array (n, D) of floats; whole numbers become float64. Raises BctError for other types."""
    x = np.asanyarray(x)
    if x.dtype.kind in "iu":
        x = x.astype(np.float64)
    if x.dtype.kind != "f" or x.ndim != 2:
        raise BctError(
            f"the embeddings are {x.dtype} {x.shape}, not floats (n, D)",
            "give one row for each item, as floats",
        )
    return x


def first_not_finite(vectors: np.ndarray) -> int | None:
    """The first row, of (n, D) or (n,), with NaN or inf in it; None if there is none."""
    for start in range(0, len(vectors), BLOCK):
        finite = np.isfinite(vectors[start : start + BLOCK])
        if not finite.all():
            return start + int(finite.reshape(len(finite), -1).all(axis=1).argmin())
    return None


def refuse_not_finite(
    vectors: np.ndarray | torch.Tensor,
    whose: str = "the embeddings",
    name: Callable[[int], object] = int,
) -> None:
    """Raises BctError for rows (n, D) or numbers (n,) that are not finite.

    Args:
        whose: what a message calls them, a file as a rule. name: what it calls row i.
    """
    row = first_not_finite(vectors.numpy() if torch.is_tensor(vectors) else vectors)
    if row is not None:
        raise BctError(f"{whose}: row {name(row)} is not finite (NaN or inf)", _AGAIN)


def single_rows(
    x: np.ndarray, whose: str = "the embeddings", name: Callable[[int], object] = int
) -> np.ndarray:
    """Rows (n, D) as float32, of their own lengths. Raises BctError for one that is not finite, or
    not in float32; arguments as of refuse_not_finite."""
    with np.errstate(over="ignore"):
        out = np.asarray(_floats(x), np.float32)
    if out.dtype != x.dtype and not np.isfinite(out).all():
        refuse_not_finite(x, whose, name)
        raise BctError(
            f"{whose}: row {name(first_not_finite(out))} has numbers too large for float32",
            "divide the rows by their lengths first",
        )
    refuse_not_finite(out, whose, name)
    return out


def check_rows(
    vectors: np.ndarray,
    whose: str = "the embeddings",
    describe: Callable[[int], str] | None = None,
    alike: bool = True,
) -> np.ndarray:
    """Which rows of (n, D) are zeros, int64 (k,), ascending.

    Args:
        whose: what a message calls them, a file as a rule. describe: what a row is of.
        alike: refuse rows that all point the same way, too: such a model tells nobody apart.

    Raises:
        BctError: no floats; a row that is not finite; all rows zeros, or all alike.
    """
    vectors = _floats(vectors)
    odd = np.zeros(len(vectors), bool)

    def look(rows: slice) -> None:
        x = read_stored(vectors, rows)
        x = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
        with np.errstate(all="ignore"):
            odd[rows] = is_odd(np.einsum("nd,nd->n", x, x))

    each_in_threads(look, len(vectors), _CACHED)
    rows = np.flatnonzero(odd)
    zeros = [rows[:0]]
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        x = vectors[part]
        refuse_not_finite(x, whose, lambda row, part=part: _named(part[row], describe))
        zeros.append(part[~x.any(axis=1)])
    zeros = np.concatenate(zeros)
    if len(vectors) and len(zeros) == len(vectors):
        raise BctError(
            f"{whose}: all {len(vectors)} rows are zeros",
            "check the model and its images, then compute the embeddings again",
        )
    if alike and _all_alike(vectors, zeros):
        raise BctError(
            f"{whose}: all {len(vectors)} rows are alike",
            "give embeddings that tell items apart; this model's training has failed",
        )
    return zeros


def _named(row: int, describe: Callable[[int], str] | None) -> str:
    return f"{row}" if describe is None else f"{row} ({describe(int(row))})"


def _all_alike(vectors: np.ndarray, zeros: np.ndarray) -> bool:
    """Whether all rows but those of zeros, two or more, point the same way."""
    if len(vectors) - len(zeros) < 2:
        return False
    start = int(np.argmax(np.append(zeros, -1) != np.arange(len(zeros) + 1)))  # the first of them
    one, block = unit_rows(vectors[start : start + 1]), 2  # most often two rows tell
    while start < len(vectors):
        x = unit_rows(vectors[start : start + block])
        if (np.abs(x - one).max(axis=1) > 1e-6)[x.any(axis=1)].any():
            return False
        start, block = start + block, _CACHED >> 2
    return True


def zeros_remark(
    whose: str,
    zeros: np.ndarray,
    total: int,
    describe: Callable[[int], str] | None = None,
    so: str = "score 0",
) -> str:
    """The line about rows of zeros, see check_rows; so: what they do."""
    named = ", ".join(_named(row, describe) for row in zeros[:_NAMED])
    more = ", ..." if len(zeros) > _NAMED else ""
    return (
        f"{whose}: {len(zeros)} of {total} rows are zeros, so no embeddings; they {so} "
        f"(row {named}{more})"
    )


def unit_blocks(
    features: np.ndarray, whose: str = "the embeddings", block: int = BLOCK
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice, float32 (block, D)) over the rows of an array, of unit length; zeros stay zeros.

    Raises BctError for a row that is not finite.
    """
    for start in range(0, len(features), block):
        rows = slice(start, min(start + block, len(features)))
        x = _floats(read_stored(features, rows))
        unit = np.empty(x.shape, np.float32)
        odd = _divide(x, unit)
        refuse_not_finite(unit[odd], whose, lambda k, start=start, odd=odd: start + odd[k])
        yield rows, torch.from_numpy(unit)


def any_number(x: torch.Tensor) -> torch.Tensor:
    """Which rows of (B, D) are not zeros, bool (B,)."""
    found = x[:, 0] != 0  # most of them: the others are looked at
    rest = (~found).nonzero()[:, 0]
    if len(rest):
        found[rest] = x[rest].any(dim=1)
    return found


def present_rows(features: np.ndarray) -> np.ndarray:
    """Which rows of (n, D) are not zeros, bool (n,), read in blocks."""
    return np.concatenate([any_number(x).numpy() for _, x in row_blocks(features)])


def row_blocks(features: np.ndarray, block: int = BLOCK) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice, float32 (block, D)) over the rows of an array.

    A memory-mapped file is read, not mapped, so that its pages do not count as this process's
    memory; reading is also faster.
    """
    for start in range(0, len(features), block):
        rows = slice(start, min(start + block, len(features)))
        x = np.empty((rows.stop - start, features.shape[1]), np.float32)
        yield rows, torch.from_numpy(read_rows(features, rows, x))


def read_rows(features: np.ndarray, rows: slice, x: np.ndarray) -> np.ndarray:
    """Copies some rows to x, float32 (B, D), and returns it. What has no room there becomes inf."""
    stored = read_stored(features, rows, x if features.dtype == x.dtype else None)
    if stored is not x:
        with np.errstate(over="ignore"):
            x[:] = stored
    return x


def read_stored(features: np.ndarray, rows: slice, x: np.ndarray | None = None) -> np.ndarray:
    """Some rows, of their own type, (B, D); read, not mapped, where that can be.

    Args:
        x: where to read them to, of that type and shape.
    """
    # a part of a mapped array keeps the offset of the whole; what changed a private one is no file
    whole_file = isinstance(features, np.memmap) and isinstance(features.base, mmap.mmap)
    if not (whole_file and features.flags.c_contiguous and features.mode != "c"):
        return np.asarray(features[rows])
    if x is None:
        x = np.empty((rows.stop - rows.start, features.shape[1]), features.dtype)
    with open(features.filename, "rb", buffering=0) as file:
        file.seek(features.offset + rows.start * features.shape[1] * features.itemsize)
        if file.readinto(x) != x.nbytes:
            raise BctError(f"{features.filename} is shorter than it was", "load it again")
    return x
