"""The names of rows, one a line, in a text file beside their embeddings.

Names are bytes. A backslash in one is written as two, a line feed as \\n and a carriage return as
\\r, so that every name is one line; all other bytes are written as they are.
"""

from collections.abc import Iterable
from pathlib import Path

from bct.errors import BctError
from bct.files import atomic

_ESCAPED = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))


def write_names(path: Path, names: Iterable[bytes]) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.writelines(line_of(name) + b"\n" for name in names)


def line_of(name: bytes) -> bytes:
    for byte, escaped in _ESCAPED:
        name = name.replace(byte, escaped)
    return name


def read_names(path: Path) -> list[bytes]:
    """What write_names wrote. BctError for a missing file, or an escape that is none of ours."""
    if not path.is_file():
        raise BctError(f"{path} does not exist", "copy it from where the embeddings come from")
    lines = path.read_bytes().split(b"\n")
    if lines.pop():
        raise BctError(f"{path} has been cut: its last line does not end", "copy it again")
    return [_name_of(path, number, line) for number, line in enumerate(lines, 1)]


def _name_of(path: Path, number: int, line: bytes) -> bytes:
    parts = line.split(b"\\\\")
    if any(part.count(b"\\") != part.count(b"\\n") + part.count(b"\\r") for part in parts):
        raise BctError(
            f"{path}, line {number}: a backslash is followed by none of \\, n, r",
            "write names as docs/api.md says, a backslash as two",
        )
    return b"\\".join(part.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for part in parts)
