"""The index of a record file: `key<TAB>offset`, one line per record.

Parsing the text of millions of records takes seconds, and each process would hold its own numbers.
Those of a large index are therefore kept in a cache, which the next opening maps: all processes
share its pages.
"""

import errno
import hashlib
import logging
import os
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from bct.errors import BctError
from bct.files import atomic, sha256_file, without_mark

REBUILD = "copy both files again, or delete the .idx to have it rebuilt from the records"
_LARGE = 4 << 20  # bytes of text; fewer are parsed within 0.1 s


def read_index(path: str | Path, cached_from: int = _LARGE) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an .idx file, int64 (n,) each, read-only, in the file's order.

    The numbers of a large index are kept in `cache_folder()` under the SHA-256 of the text, where
    no other text finds them. They are used only if their CRC-32 is right: that is never so after a
    change of up to 32 bits in a row, and after any other damage in one of 2^32 cases; then the text
    is parsed again and the file rewritten. What is not noticed: damage after the opening, and what
    somebody put there with a CRC-32 that fits. Where the folder can't be written, the text is
    parsed at every opening, and a warning says so once per process.

    Args:
        cached_from: bytes of text from which on it is cached.

    Raises:
        BctError: the content is anything else than `key<TAB>offset` lines of numbers below
            2^63 - 1.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.stat().st_size < cached_from:
        table = _parse(path, path.read_bytes())
    else:
        table = _cached(sha256_file(path))
        if table is None:  # the text may have changed meanwhile, so that its name is made again
            text = path.read_bytes()
            table = _keep(hashlib.sha256(text).hexdigest(), _parse(path, text))
    return table[0], table[1]


def cache_folder() -> Path:
    """Where large indices are kept: $XDG_CACHE_HOME/bct/index, else ~/.cache/bct/index.

    Its files may be deleted at any time. OSError if there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # as its specification demands
        return Path(base, "bct", "index")
    try:
        return Path.home() / ".cache" / "bct" / "index"
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from None


def _parse(path: Path, text: bytes) -> np.ndarray:
    """The numbers of an index, int64 (2, n)."""
    text = without_mark(path, text).replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"
    lines = text.count(b"\n")
    table = np.empty(0, np.int64)
    if text.translate(None, b"0123456789") == b"\t\n" * lines:
        table = np.fromstring(text, np.int64, sep=" ")  # any white space; passes over empty fields
    # a number that is too large becomes the largest
    if len(table) != 2 * lines or table.max() == np.iinfo(np.int64).max:
        why = "it has lines that are not `key<TAB>offset`"
        if not text.strip():
            why = "it does not hold two columns, `key<TAB>offset`"
        raise BctError(f"{path} does not match its record file: {why}", REBUILD)
    table = np.ascontiguousarray(table.reshape(lines, 2).T)
    table.flags.writeable = False  # as what comes from the cache
    return table


def _cached(name: str) -> np.ndarray | None:
    """int64 (2, n) of the text with this digest; None if the cache does not hold it whole.

    A cached file is n keys, n offsets and the check sum, little-endian int64.
    """
    try:
        numbers = np.asarray(np.memmap(cache_folder() / name, "<i8", "r"))
    except (OSError, ValueError):  # absent or unreadable; no multiple of 8 bytes
        return None
    whole = len(numbers) > 2 and len(numbers) % 2 and _checksum(name, numbers[:-1]) == numbers[-1]
    return numbers[:-1].reshape(2, -1) if whole else None


def _keep(name: str, table: np.ndarray) -> np.ndarray:
    """Puts a table into the cache and returns it from there; as it is if that fails."""
    try:
        with atomic(cache_folder() / name) as temporary, open(temporary, "wb") as file:
            file.write(table.astype("<i8", copy=False).data)
            file.write(_checksum(name, table).to_bytes(8, "little"))
    except OSError as error:
        _warn(error.strerror)  # without the name, which is another one each time
    kept = _cached(name)
    return table if kept is None else kept


def _checksum(name: str, numbers: np.ndarray) -> int:
    return zlib.crc32(numbers.astype("<i8", copy=False).data, zlib.crc32(name.encode()))


@cache
def _warn(reason: str) -> None:
    """Once for each reason."""
    logging.getLogger().warning(  # logging.warning would print all later lines twice
        "large record indices are parsed at every start, since $XDG_CACHE_HOME/bct/index or "
        "~/.cache/bct/index can't be written (%s): set XDG_CACHE_HOME to a folder that can",
        reason,
    )


def ascending(values: np.ndarray) -> bool:
    """Whether each of the values (n,) is larger than the one before."""
    return bool((values[1:] > values[:-1]).all())


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
