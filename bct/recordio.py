"""MXNet RecordIO without MXNet: random-access reader and sequential writer of .rec/.idx pairs.

Layout (all little-endian). A .rec file is a sequence of parts, each starting on a 4-byte boundary:

    u32 magic 0xCED7230A | u32 cflag << 29 | length | length bytes | zero padding to 4 bytes

cflag 0 is a whole record. A payload that contains the magic on a 4-byte boundary is cut there into
parts with cflag 1 (first), 2 (middle), 3 (last); the magic itself is left out and put back by the
reader. A record's payload starts with a 24-byte header `IfQQ` (flag, label, id, id2), followed by
`flag` float32 labels when flag > 0, followed by the data (a JPEG file, or nothing in metadata).
The .idx file is text, one `key<TAB>offset` per line.

Needs numpy only. Sources: dmlc-core recordio, mxnet.recordio 1.9.1 (checked byte for byte).
"""

import mmap
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.errors import BctError

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
MAX_PART = (1 << 29) - 1


class Header(NamedTuple):
    """A record's header. `label` is a float, or a float32 array when it was written as one."""

    label: float | np.ndarray
    id: int = 0
    id2: int = 0


def pack(header: Header, data: bytes) -> bytes:
    """The payload of a record. A scalar label is stored with flag 0, an array with its length."""
    if np.ndim(header.label) == 0:
        return _HEADER.pack(0, header.label, header.id, header.id2) + data
    labels = np.asarray(header.label, dtype="<f4")
    return _HEADER.pack(labels.size, 0.0, header.id, header.id2) + labels.tobytes() + data


def unpack(payload: bytes | memoryview) -> tuple[Header, memoryview]:
    """Splits a payload into header and data (a view). Raises ValueError if it is too short."""
    payload = memoryview(payload)
    if len(payload) < _HEADER.size:
        raise ValueError(f"a record of {len(payload)} bytes has no room for its header")
    flag, label, id, id2 = _HEADER.unpack_from(payload)
    start = _HEADER.size + 4 * flag
    if flag == 0:
        return Header(label, id, id2), payload[start:]
    if len(payload) < start:
        raise ValueError(f"a record of {len(payload)} bytes has no room for its {flag} labels")
    return Header(np.frombuffer(payload, "<f4", flag, _HEADER.size), id, id2), payload[start:]


class RecordReader:
    """Random access to a record file by key.

    The file is memory-mapped: forked workers share its pages and the index arrays. Pickling (to a
    spawned worker) carries the paths and the index and maps the file again.

    Args:
        path: the .rec file.
        index: the .idx file; default the one beside it. When it does not exist the index is
            rebuilt by scanning: keys are the ids in the records' headers, or the positions
            0, 1, ... if those ids are not unique.

    Attributes:
        keys, offsets: int64 arrays (n,), in the order of the index file.

    Raises:
        BctError: missing or empty file, an index that does not fit the file, a truncated file.
    """

    def __init__(self, path: str | Path, index: str | Path | None = None):
        self.path = Path(path)
        self.index_path = Path(index) if index else self.path.with_suffix(".idx")
        if not self.path.is_file():
            raise BctError(f"record file {self.path} does not exist", "check the path (key `rec`)")
        if self.path.stat().st_size == 0:
            raise BctError(f"record file {self.path} is empty", "copy or write it again")
        self._map()
        if self.index_path.is_file():
            self.keys, self.offsets = self._read_index()
            self._check_index()
        else:
            self.keys, self.offsets = self._rebuild_index()
        order = np.argsort(self.keys, kind="stable")
        self._sorted_keys, self._order = self.keys[order], order
        if len(order) > 1 and (self._sorted_keys[1:] == self._sorted_keys[:-1]).any():
            raise self._index_error("a key occurs twice")

    def _map(self) -> None:
        with open(self.path, "rb") as file:
            self._mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._mmap)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_mmap", "_view")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        return self._find(key) is not None

    def offset(self, key: int) -> int:
        """Byte offset of the record with this key. Raises BctError for an unknown key."""
        position = self._find(key)
        if position is None:
            raise BctError(
                f"{self.path} has no record with key {key}",
                f"its {len(self)} keys run from {self._sorted_keys[0]} to {self._sorted_keys[-1]}; "
                "if the index is damaged, delete the .idx and it is rebuilt",
            )
        return int(self.offsets[position])

    def read(self, key: int) -> tuple[Header, memoryview]:
        """Header and data of a record. Raises BctError naming file, key and offset."""
        offset = self.offset(key)
        try:
            return unpack(self._payload(offset)[0])
        except ValueError as error:
            raise self.broken(key, str(error)) from None

    def labels(self) -> np.ndarray:
        """First label of every record, float32 (n,), in index order, without touching the data."""
        whole = len(self._view) // 4 * 4
        words = np.frombuffer(self._view[:whole], "<u4")
        at = self.offsets // 4
        short = np.flatnonzero(
            (at + 8 > len(words)) | (words[np.minimum(at, len(words) - 1)] != MAGIC)
        )
        if len(short):
            raise self.broken(int(self.keys[short[0]]), "no whole record starts there")
        out = words[at + 3].view("<f4")
        array = np.flatnonzero(words[at + 2] > 0)  # flag > 0: the first label follows the header
        out[array] = words[np.minimum(at[array] + 8, len(words) - 1)].view("<f4")
        for i in np.flatnonzero(words[at + 1] >> 29):  # split: the label may be in a later part
            out[i] = np.ravel(self.read(int(self.keys[i]))[0].label)[0]
        return out

    def broken(self, key: int, why: str) -> BctError:
        """The error for a record that cannot be used, naming file, key and offset."""
        return BctError(
            f"{self.path}: record with key {key} at offset {self.offset(key)} is broken ({why})",
            "copy or download the file again",
        )

    def _find(self, key: int) -> int | None:
        i = int(np.searchsorted(self._sorted_keys, key))
        if i == len(self._sorted_keys) or self._sorted_keys[i] != key:
            return None
        return int(self._order[i])

    def _payload(self, offset: int) -> tuple[bytes | memoryview, int]:
        """Payload of the record at `offset` and the offset just behind it. ValueError if broken."""
        parts: list[memoryview] = []
        while True:
            if offset < 0 or offset + _PART.size > len(self._view):
                raise ValueError("it lies outside the file")
            magic, word = _PART.unpack_from(self._view, offset)
            if magic != MAGIC:
                raise ValueError("no record starts there")
            cflag, length = word >> 29, word & MAX_PART
            start, end = offset + _PART.size, offset + _PART.size + length
            if end > len(self._view):
                raise ValueError("it runs past the end of the file: the file is truncated")
            if cflag not in ((0, 1) if not parts else (2, 3)):
                raise ValueError(f"a part with flag {cflag} does not belong there")
            parts.append(self._view[start:end])
            offset = min(end + -length % 4, len(self._view))
            if cflag == 0:
                return parts[0], offset
            if cflag == 3:
                return _MAGIC_BYTES.join(parts), offset

    def _read_index(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            with warnings.catch_warnings():  # numpy warns about an empty file; we refuse it
                warnings.simplefilter("ignore", UserWarning)
                table = np.loadtxt(self.index_path, np.int64, delimiter="\t", ndmin=2)
        except (ValueError, OverflowError):
            raise self._index_error("it has lines that are not `key<TAB>offset`") from None
        if table.shape[0] == 0 or table.shape[1] != 2:
            raise self._index_error("it does not hold two columns, `key<TAB>offset`")
        return table[:, 0].copy(), table[:, 1].copy()

    def _check_index(self) -> None:
        """Record starts, a sample of record ends, and the end of the file must agree."""
        size = len(self._view)
        starts = np.sort(self.offsets)
        if (
            starts[0] < 0
            or starts[-1] >= size
            or (starts % 4).any()
            or (np.diff(starts) == 0).any()
        ):
            outside = starts[(starts < 0) | (starts >= size)]
            if len(outside) and starts[0] >= 0:
                raise BctError(
                    f"{self.index_path} points to {outside[0]}, but {self.path} ends at {size}",
                    "one of the two is truncated or belongs to another file: copy both again, or "
                    "delete the .idx to have it rebuilt",
                )
            raise self._index_error("its offsets are not distinct starts of records")
        sample = np.unique(np.linspace(0, len(starts) - 1, 64).astype(np.int64))
        for i in sample:
            try:
                end = self._payload(int(starts[i]))[1]
            except ValueError as error:
                raise self._index_error(f"at offset {starts[i]}: {error}") from None
            if i + 1 < len(starts) and end > starts[i + 1]:
                raise self._index_error(
                    f"the record at offset {starts[i]} ends behind the next one"
                )

    def _index_error(self, why: str) -> BctError:
        return BctError(
            f"{self.index_path} does not match {self.path}: {why}",
            "copy both files again, or delete the .idx to have it rebuilt from the records",
        )

    def _rebuild_index(self) -> tuple[np.ndarray, np.ndarray]:
        offsets = [offset for offset, _ in self.scan()]
        ids = [_HEADER.unpack_from(self._payload(offset)[0])[2] for offset in offsets]
        keys = ids if len(set(ids)) == len(ids) and max(ids) < 2**63 else range(len(ids))
        return np.array(keys, np.int64), np.array(offsets, np.int64)

    def scan(self) -> Iterator[tuple[int, int]]:
        """Walks the file from the start, without the index: (offset, end) of every record.

        Raises BctError where the chain of records breaks.
        """
        offset = 0
        while offset < len(self._view):
            try:
                payload, end = self._payload(offset)
                unpack(payload)
            except ValueError as error:
                raise BctError(
                    f"{self.path}: broken record at offset {offset} ({error})",
                    "copy or download the file again",
                ) from None
            yield offset, end
            offset = end


class RecordWriter:
    """Writes a .rec and its .idx, byte for byte as MXNet 1.9.1 does.

    A context manager: both files get their names when the block ends without an error, and leave
    nothing behind otherwise.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tag = f".{os.getpid()}.tmp"
        self._final = [self.path, self.path.with_suffix(".idx")]
        self._temporary = [p.with_name(f".{p.name}{tag}") for p in self._final]
        self._rec = open(self._temporary[0], "wb")  # noqa: SIM115  (closed in __exit__)
        self._idx = open(  # noqa: SIM115
            self._temporary[1], "w", encoding="ascii", newline="\n"
        )

    def write(self, key: int, header: Header, data: bytes | memoryview) -> None:
        """Appends one record. Raises BctError when the payload exceeds 2^29 - 1 bytes."""
        payload = pack(header, bytes(data))
        if len(payload) > MAX_PART:
            raise BctError(
                f"record {key} has {len(payload)} bytes; RecordIO holds at most {MAX_PART}",
                "store a smaller image",
            )
        self._idx.write(f"{key}\t{self._rec.tell()}\n")
        cuts = _aligned_magics(payload)
        starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            cflag = 0 if not cuts else 1 if i == 0 else 3 if i == len(cuts) else 2
            self._rec.write(_PART.pack(MAGIC, cflag << 29 | end - start))
            self._rec.write(payload[start:end])
            self._rec.write(b"\0" * (-(end - start) % 4))

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self._rec.close()
        self._idx.close()
        for temporary, final in zip(self._temporary, self._final, strict=True):
            if error_type is None:
                os.replace(temporary, final)
            else:
                temporary.unlink(missing_ok=True)


def _aligned_magics(payload: bytes) -> list[int]:
    """Positions, multiples of 4, at which the payload contains the magic."""
    found, at = [], payload.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            found.append(at)
            at = payload.find(_MAGIC_BYTES, at + 4)
        else:
            at = payload.find(_MAGIC_BYTES, at + 1)
    return found
