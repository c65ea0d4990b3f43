"""Sequential writer of .rec/.idx pairs; see bct/data/recordio.py for the layout."""

import os
from pathlib import Path

from bct.data.recordio import MAGIC, MAGIC_BYTES, MAX_PART, PART, Header, pack
from bct.errors import BctError


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
            self._rec.write(PART.pack(MAGIC, cflag << 29 | end - start))
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
    found, at = [], payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            found.append(at)
            at = payload.find(MAGIC_BYTES, at + 4)
        else:
            at = payload.find(MAGIC_BYTES, at + 1)
    return found
