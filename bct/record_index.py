"""The index of a record file: `key<TAB>offset`, one line per record."""

import warnings
from pathlib import Path

import numpy as np

from bct.errors import BctError

REBUILD = "copy both files again, or delete the .idx to have it rebuilt from the records"


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an .idx file, int64 (n,) each. Raises BctError on any other content."""
    path = Path(path)
    strange = path.read_bytes().translate(None, b"0123456789\t\r\n")  # more than loadtxt refuses
    try:
        with warnings.catch_warnings():  # numpy warns about an empty file; we refuse it
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(path, np.int64, comments=None, delimiter="\t", ndmin=2)
    except (ValueError, OverflowError):
        strange = True
    if strange:
        why = "it has lines that are not `key<TAB>offset`"
    elif table.shape[0] == 0 or table.shape[1] != 2:
        why = "it does not hold two columns, `key<TAB>offset`"
    else:
        return table[:, 0].copy(), table[:, 1].copy()
    raise BctError(f"{path} does not match its record file: {why}", REBUILD)


def ids_are_keys(ids: np.ndarray, keys: np.ndarray) -> bool:
    """Whether the ids in records' headers (n,) repeat their keys (n,): whether most of them do."""
    return bool(2 * (ids == keys.astype(ids.dtype)).sum() > len(ids))


def repeated(values: np.ndarray) -> np.ndarray:
    """bool (n,): which of these values (n,) occur more than once."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def no_keys(ids: np.ndarray) -> np.ndarray:
    """bool (n,): which ids in records' headers, uint64 (n,), can't be the records' keys."""
    return repeated(ids) | (ids >= 2**63)


def can_be_keys(ids: np.ndarray) -> bool:
    """Whether the ids in records' headers, uint64 (n,), say what the keys were: if most could.

    Some writers give all records the same id; a damaged record may have that of another one.
    """
    return bool(2 * no_keys(ids).sum() < len(ids))
