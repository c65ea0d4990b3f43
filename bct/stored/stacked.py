"""Rows of several files as one array: the queries' and the gallery's, which may be on a disk."""

from collections.abc import Sequence

import numpy as np


class Stacked:
    """Arrays (n, D), (m, D), ... one behind the other, which are not copied.

    A slice that lies in one of them is a part of it; other rows are copied, as all are by
    numpy.asarray. Where the whole is small, concatenated arrays serve as well.
    """

    ndim = 2

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.shape = (int(self.starts[-1]), self.parts[0].shape[1])
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        if not isinstance(rows, slice):
            return self._chosen(np.asarray(rows))
        start, stop, step = rows.indices(len(self))
        part = int(np.searchsorted(self.starts, start, side="right")) - 1
        if step == 1 and start < stop <= self.starts[part + 1]:
            if stop - start == len(self.parts[part]):
                return self.parts[part]  # the file itself, which bct.rows reads and does not map
            return self.parts[part][start - self.starts[part] : stop - self.starts[part]]
        return self._chosen(np.arange(start, stop, step))

    def _chosen(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        rows = np.where(rows < 0, rows + len(self), rows)
        out = np.empty((*rows.shape, self.shape[1]), self.dtype)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            out[of == number] = part[rows[of == number] - self.starts[number]]
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate(self.parts)
        return whole if dtype is None else whole.astype(dtype)
