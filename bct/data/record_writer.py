"""Sequential writer of .rec/.idx pairs; see bct/data/recordio.py for the layout."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bct.data.recordio import MAGIC, MAGIC_BYTES, MAX_PART, PART, Header, pack
from bct.errors import BctError
from bct.files import atomic, write_text


def claim(path: Path, beside: dict[Path, str]) -> None:
    """Makes sure that nothing of anybody else's is replaced by a new set of files, and writes those
    that say whose it is.

    Args:
        path: what gets its name last; it must not be there.
        beside: files and their texts, written first. An index beside `path` may be replaced if they
            are there already: then a killed run of the same command has left it.

    Raises BctError for a file that is there and is not what this command writes.
    """
    index = path.with_suffix(".idx")
    known = [file for file, text in beside.items() if holds(file, text)]
    foreign = [file for file in (path, *beside) if os.path.lexists(file) and file not in known]
    if path.suffix == ".rec" and os.path.lexists(index) and len(known) < len(beside):
        foreign.append(index)
    if foreign:
        raise BctError(
            f"{foreign[0]} exists and was not made in this way",
            "move it away, or give another folder",
        )
    for file, text in beside.items():
        if file not in known:
            write_text(file, text)


def holds(file: Path, text: str) -> bool:
    """Whether a file has this text and nothing else."""
    return file.is_file() and file.read_bytes() == text.encode(errors="surrogateescape")


class RecordWriter:
    """Writes a .rec and its .idx, byte for byte as MXNet 1.9.1 does.

    A context manager: both files get their names when the block ends without an error, the record
    file last; nothing is left behind otherwise, and what killed processes left is removed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with ExitStack() as stack:
            # what is entered last ends first: the index is closed and named, then the records
            named = stack.enter_context(atomic(self.path))
            self._rec = stack.enter_context(open(named, "wb"))
            named = stack.enter_context(atomic(self.path.with_suffix(".idx")))
            self._idx = stack.enter_context(open(named, "w", encoding="ascii", newline="\n"))
            self._stack = stack.pop_all()

    def write(self, key: int, header: Header, data: bytes | memoryview) -> None:
        """Appends one record. Raises BctError when the payload exceeds 2^29 - 1 bytes."""
        payload = pack(header, bytes(data))
        if len(payload) > MAX_PART:
            raise BctError(
                f"record {key} has {len(payload)} bytes; RecordIO holds at most {MAX_PART}",
                "store a smaller image",
            )
        cuts = _aligned_magics(payload)
        starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
        with self._saying_which():
            self._idx.write(f"{key}\t{self._rec.tell()}\n")
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                cflag = 0 if not cuts else 1 if i == 0 else 3 if i == len(cuts) else 2
                self._rec.write(PART.pack(MAGIC, cflag << 29 | end - start))
                self._rec.write(payload[start:end])
                self._rec.write(b"\0" * (-(end - start) % 4))

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        with self._saying_which(), self._stack:
            if error[1] is not None:
                raise error[1]
            self._rec.flush()  # or a full disk would show when the index has its name

    @contextmanager
    def _saying_which(self) -> Iterator[None]:
        """An OSError in writing, as that of a full disk, names no file by itself."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise


def _aligned_magics(payload: bytes) -> list[int]:
    """Positions, multiples of 4, at which the payload contains the magic."""
    found, at = [], payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            found.append(at)
            at = payload.find(MAGIC_BYTES, at + 4)
        else:
            at = payload.find(MAGIC_BYTES, at + 1)
    return found
