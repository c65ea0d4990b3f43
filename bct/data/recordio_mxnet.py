"""The same reader interface on top of MXNet itself: `rec_backend = "mxnet"`.

For checking our reader against the original. MXNet is retired; see requirements-mxnet.txt.
"""

from pathlib import Path

import numpy as np

from bct.data.recordio import Header, RecordReader
from bct.errors import BctError


class MxnetReader(RecordReader):
    """A RecordReader whose records are read by mxnet.recordio.MXIndexedRecordIO."""

    def __init__(self, path: str | Path, index: str | Path | None = None):
        super().__init__(path, index)
        self._open()

    def _open(self) -> None:
        try:
            from mxnet import recordio
        except ImportError as error:
            raise BctError(
                f'rec_backend="mxnet" needs MXNet, which does not import here ({error})',
                'use rec_backend="native", or an environment made from requirements-mxnet.txt',
            ) from None
        if not self.index_path.is_file():
            raise BctError(f"{self.index_path} does not exist", 'use rec_backend="native"')
        self._unpack = recordio.unpack
        try:  # reopens itself after a fork
            self._records = recordio.MXIndexedRecordIO(str(self.index_path), str(self.path), "r")
        except Exception as error:  # of kinds of its own, and ValueError for a byte order mark
            raise BctError(
                f"MXNet can't open {self.path} with its .idx ({_line(error)})",
                'use rec_backend="native", or copy both files again',
            ) from None

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in ("_records", "_unpack")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._open()

    def read(self, key: int) -> tuple[Header, memoryview]:
        self.offset(key)  # BctError for an unknown key
        try:
            header, data = self._unpack(self._records.read_idx(key))
        except Exception as error:  # of kinds of its own, and others where it gets no record
            raise self.broken(key, f"MXNet: {_line(error)}") from None
        label = np.float32(header.label) if header.flag == 0 else header.label
        return Header(label, header.id, header.id2), memoryview(data)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
