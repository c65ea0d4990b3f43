"""Vectors in .fvecs files, as nearest neighbour benchmarks have them.

A row is its dimension, int32, and as many float32; little-endian, all rows of one dimension.
"""

from pathlib import Path

import numpy as np

from bct.errors import BctError

_DO = "write each row as int32 D and D float32, little-endian, with one D for all rows"
_LARGEST = 1 << 20  # dimensions


def open_fvecs(path: str | Path) -> np.ndarray:
    """The rows, float32 (n, D), memory-mapped, read-only.

    Raises BctError for a file that is none, or whose rows have several dimensions.
    """
    path = Path(path)
    size = path.stat().st_size
    if size < 8 or size % 4:
        raise BctError(f"{path} is no .fvecs file: it has {size:,} bytes", _DO)
    words = np.memmap(path, "<i4", mode="r")
    width = int(words[0])
    if not 0 < width <= _LARGEST or len(words) % (width + 1):
        raise BctError(
            f"{path} is no .fvecs file: its first row says {width} dimensions, which does not fit "
            f"its {size:,} bytes",
            _DO,
        )
    rows = words.reshape(-1, width + 1)
    other = np.flatnonzero(rows[:, 0] != width)
    if len(other):
        raise BctError(
            f"{path}: row {other[0]} says {rows[other[0], 0]} dimensions, the first one {width}",
            _DO,
        )
    # not a memmap any more: bct.rows would read one as a whole file of rows side by side
    return np.asarray(rows[:, 1:].view("<f4")).view(np.ndarray)
