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
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.record_index import REBUILD, ascending, can_be_keys, ids_are_keys, no_keys, read_index
from bct.errors import BctError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
MAX_PART = (1 << 29) - 1
_BLOCK = 1 << 20  # words searched together
BROKEN = "copy or download the file again; tools/check_rec.py lists all that is broken"


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


class RecordFile:
    """A record file without its index. Forked workers share it; pickling (to a spawned worker)
    opens it again. BctError if it is missing or empty.

    Records are read with `pread`, which says so if the file has been truncated or the disk fails:
    a memory map would end the process. What looks at the whole file, `heads` and the search for
    damage, maps it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            raise BctError(
                f"{self.path} is a folder, not a record file",
                f"name the file in it, e.g. {self.path / 'train.rec'}",
            )
        if not self.path.is_file():
            raise BctError(f"record file {self.path} does not exist", "check the path")
        if self.path.stat().st_size == 0:
            raise BctError(f"record file {self.path} is empty", "copy or write it again")
        self._open_file()

    def _open_file(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        memory = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        self.size = len(memory)
        self._words = np.frombuffer(memory, "<u4", self.size // 4)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_file", "_words")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open_file()

    def _bytes(self, start: int, end: int) -> bytes:
        """These bytes of the file. ValueError if they are not there any more."""
        try:
            found = os.pread(self._file, end - start, start)
        except OSError as error:
            raise ValueError(f"it can't be read: {error.strerror}") from None
        if len(found) < end - start:  # the size was right when it was opened
            raise ValueError("the file has been truncated since it was opened")
        return found

    def _check_size(self) -> None:
        """To be called before the map is touched, which would end the process. BctError."""
        if os.fstat(self._file).st_size < self.size:
            raise BctError(f"{self.path} has been truncated since it was opened", BROKEN)

    def read_at(self, offset: int) -> tuple[Header, memoryview]:
        """Header and data of the record at `offset`. Raises ValueError if it is broken."""
        return unpack(self._payload(offset)[0])

    def scan(self) -> Iterator[tuple[int, int]]:
        """Walks the file from the start, without the index: (offset, end) of every record.

        Raises BctError where the chain of records breaks.
        """
        offset = 0
        while offset < self.size:
            try:
                payload, end = self._payload(offset)
                unpack(payload)
            except ValueError as error:
                raise BctError(
                    f"{self.path}: broken record at offset {offset} ({error})", BROKEN
                ) from None
            yield offset, end
            offset = end

    def stretches(self) -> Iterator[tuple[int, int, str]]:
        """Walks the file past any damage: (offset, end, "") of whole records, (offset, end, what is
        wrong) of the broken stretches between them. Unlike `scan` it reads every byte, and so finds
        a length field that is too large."""
        offset = 0
        while offset < self.size:
            self._check_size()
            try:
                end, wrong = self._end(offset), ""
            except ValueError as error:
                end, wrong = self._next_record(offset + 4), str(error)
            yield offset, end, wrong
            offset = end

    def _end(self, offset: int) -> int:
        """Where the record at `offset` ends. ValueError unless it is whole to the last byte."""
        parts, end = self._parts(offset)
        for start, stop in parts:
            if (
                self._words[start // 4 : stop // 4] == MAGIC
            ).any():  # a writer would have cut there
                raise ValueError("another record starts within it: its length is wrong")
        unpack(self._payload(offset)[0])
        return end

    def _next_record(self, offset: int) -> int:
        """Where the next whole record starts, from `offset` on; else the file's size."""
        for block in range(offset // 4, len(self._words), _BLOCK):
            for word in np.flatnonzero(self._words[block : block + _BLOCK] == MAGIC):
                try:
                    self._end(4 * (block + int(word)))
                except ValueError:
                    continue
                return 4 * (block + int(word))
        return self.size

    def _payload(self, offset: int) -> tuple[bytes, int]:
        """Payload of the record at `offset` and the offset just behind it. ValueError if broken."""
        parts, end = self._parts(offset)
        pieces = [self._bytes(start, stop) for start, stop in parts]
        return pieces[0] if len(pieces) == 1 else MAGIC_BYTES.join(pieces), end

    def _parts(self, offset: int) -> tuple[list[tuple[int, int]], int]:
        """(start, end) of the contents of each part of the record at `offset`, and its end."""
        parts: list[tuple[int, int]] = []
        while True:
            if offset < 0 or offset + PART.size > self.size:
                raise ValueError("it lies outside the file")
            magic, word = PART.unpack(self._bytes(offset, offset + PART.size))
            if magic != MAGIC:
                raise ValueError("no record starts there")
            cflag, length = word >> 29, word & MAX_PART
            start, end = offset + PART.size, offset + PART.size + length
            if end > self.size:
                raise ValueError("it runs past the end of the file: the file is truncated")
            if cflag not in ((0, 1) if not parts else (2, 3)):
                raise ValueError(f"a part with flag {cflag} does not belong there")
            if cflag in (1, 2) and length % 4:
                raise ValueError(f"a part of {length} bytes is cut where no magic was")
            parts.append((start, end))
            offset = min(end + -length % 4, self.size)
            if cflag in (0, 3):
                return parts, offset


class RecordReader(RecordFile):
    """Random access to a record file by key.

    RecordIO has no checksums: damage within a record's data can't be seen here. A key that leads to
    another record can, where headers repeat the keys, as those of all known writers do: if most of
    64 sampled ones do, a record under a wrong key is refused unless its id is not its own either.

    Args:
        path: the .rec file.
        index: the .idx file; default the one beside it. When it does not exist the index is
            rebuilt by scanning: keys are the ids in the records' headers, or the positions
            0, 1, ... if most of those ids are not unique.

    Attributes:
        keys, offsets: int64 arrays (n,), in the order of the index file.

    Raises:
        BctError: missing or empty file, an index that does not fit the file, a truncated file.
    """

    def __init__(self, path: str | Path, index: str | Path | None = None):
        super().__init__(path)
        self.index_path = Path(index) if index else self.path.with_suffix(".idx")
        if self.index_path.is_file():
            self.keys, self.offsets = read_index(self.index_path)
        else:
            self.keys, self.offsets = self._rebuild_index()
        # most keys are in order, but for insightface's key 0, which comes last
        self._first, self._order = int(self.keys[0]), None
        self._ordered = len(self) - int(self.keys[-1] < self.keys[0])
        if not ascending(self.keys[: self._ordered]):
            self._ordered, self._order = len(self), np.argsort(self.keys, kind="stable")
            if not ascending(self.keys[self._order]):
                raise self._index_error("a key occurs twice")
        self._ids_are_keys = self._check_index()

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
                f"its {len(self)} keys run from {self.keys.min()} to {self.keys.max()}; "
                "if the index is damaged, delete the .idx and it is rebuilt",
            )
        return int(self.offsets[position])

    def read(self, key: int) -> tuple[Header, memoryview]:
        """Header and data of a record. Raises BctError naming file, key and offset."""
        try:
            header, data = self.read_at(self.offset(key))
        except ValueError as error:
            raise self.broken(key, str(error)) from None
        if header.id != key and self._ids_are_keys and not self._is_repeated(header.id):
            raise self.broken(key, f"it is record {header.id}: the index is shifted")
        return header, data

    def heads(self) -> tuple[np.ndarray, np.ndarray]:
        """First label of every record, float32 (n,), and the length of its data, int64 (n,), in
        index order, without touching the data.

        Raises BctError as `read` does.
        """
        self._check_size()
        at = np.minimum(self.offsets // 4, len(self._words) - 8)  # the least record has 8 words
        magic, part, flag, label = (self._words[at + i] for i in range(4))
        ids = self._words[at + 4] | self._words[at + 5].astype(np.uint64) << np.uint64(32)
        lengths = (part & MAX_PART).astype(np.int64)
        plain = (magic == MAGIC) & (part >> 29 == 0) & (4 * at == self.offsets)
        plain &= lengths >= _HEADER.size + 4 * flag.astype(np.int64)
        plain &= self.offsets + PART.size + lengths <= self.size
        if self._ids_are_keys:
            plain &= ids == self.keys.astype(np.uint64)
        array = np.flatnonzero(plain & (flag > 0))  # the first label follows the header
        label[array] = self._words[at[array] + 8]
        labels = label.view("<f4")
        lengths -= _HEADER.size + 4 * flag.astype(np.int64)
        for i in np.flatnonzero(~plain):  # split, of another id, or broken: `read` knows
            header, data = self.read(int(self.keys[i]))
            labels[i], lengths[i] = np.ravel(header.label)[0], len(data)
        return labels, lengths

    def broken(self, key: int, why: str) -> BctError:
        """The error for a record that cannot be used, naming file, key and offset."""
        return BctError(
            f"{self.path}: record with key {key} at offset {self.offset(key)} is broken ({why})",
            BROKEN,
        )

    def _find(self, key: int) -> int | None:
        if not 0 <= key < 2**63:
            return None
        guess = key - self._first  # most keys count up; the last is at -1
        if -1 <= guess < len(self) and self.keys[guess] == key:
            return guess % len(self)
        i = np.searchsorted(self.keys[: self._ordered], key, sorter=self._order)
        i = min(int(i), self._ordered - 1)
        for position in (i if self._order is None else int(self._order[i]), len(self) - 1):
            if self.keys[position] == key:
                return position
        return None

    def _is_repeated(self, id: int) -> bool:
        """Whether a record is indexed under its id: another one with that id is no evidence."""
        try:
            return id in self and self.read_at(self.offset(id))[0].id == id
        except ValueError:
            return False

    def _check_index(self) -> bool:
        """Record starts, a sample of record ends, and the ends of the file must agree. Returns
        whether the sampled ids are keys."""
        order, starts = None, self.offsets
        if not ascending(starts):
            order = np.argsort(self.offsets)
            starts = self.offsets[order]
        if starts[-1] >= self.size:
            raise BctError(
                f"{self.index_path} points to {starts[-1]}, but {self.path} ends at {self.size}",
                "one of the two is truncated or belongs to another file: copy both again, or "
                "delete the .idx to have it rebuilt",
            )
        if np.bitwise_or.reduce(starts) % 4 or (order is not None and not ascending(starts)):
            raise self._index_error("its offsets are not distinct starts of records")
        sample = np.unique(np.linspace(0, len(starts) - 1, 64).astype(np.int64))
        ends, ids = np.empty(len(sample), np.int64), np.empty(len(sample), np.uint64)
        for i, start in enumerate(starts[sample].tolist()):
            try:
                payload, ends[i] = self._payload(start)
                ids[i] = unpack(payload)[0].id
            except ValueError as error:
                raise self._index_error(f"at offset {start}: {error}") from None
        following = np.append(starts[sample[:-1] + 1], self.size)
        if (ends > following).any():
            at = starts[sample[np.argmax(ends > following)]]
            raise self._index_error(f"the record at offset {at} ends behind the next one")
        self._check_gap(0, int(starts[0]))
        for end, start in zip(ends.tolist(), following.tolist(), strict=True):
            self._check_gap(end, start)
        return ids_are_keys(ids, self.keys[sample if order is None else order[sample]])

    def _check_gap(self, start: int, end: int) -> None:
        """Between two indexed records there may be damage that a repair skipped, but no record."""
        if start < end:
            try:
                self._end(start)
            except ValueError:
                return
            raise self._index_error(f"it has no entry for the record at offset {start}")

    def _index_error(self, why: str) -> BctError:
        return BctError(f"{self.index_path} does not match {self.path}: {why}", REBUILD)

    def _rebuild_index(self) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.array([offset for offset, _ in self.scan()], np.int64)
        ids = np.array([self.read_at(int(offset))[0].id for offset in offsets], np.uint64)
        if not can_be_keys(ids):
            return np.arange(len(ids)), offsets
        if no_keys(ids).any():
            at = np.argmax(no_keys(ids))
            raise BctError(
                f"{self.path}: the id {ids[at]} of the record at offset {offsets[at]} is not its "
                "own, so that its key can't be rebuilt",
                "copy or download the file again, together with its .idx",
            )
        return ids.astype(np.int64), offsets
