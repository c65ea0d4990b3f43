"""Files that are either whole or absent, and the hashes that tell whether they are still valid."""

import codecs
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bct.errors import BctError

PACKAGE = Path(__file__).resolve().parent
IN_CLONE = not (PACKAGE / "configs").is_dir()  # a wheel has its base config there
# where configs' paths start: a clone's own folder; of an installed package, where Python started
ROOT = PACKAGE.parent if IN_CLONE else Path.cwd()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields an empty file beside `path`, to be written in place, not replaced.

    When the block ends well, the file is on the disk and gets its name; on any failure it is
    removed. Until then only its owner can read it. What killed processes left of the same path is
    removed first; several processes may write one path, and the last one's file stays.

    An OSError that names no file, as that of a full disk, gets the path's name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary, descriptor = _temporary(path)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.fchmod(descriptor, 0o600)
        yield temporary
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)  # or a power cut could leave the name with half of the data
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[Path, int]:
    """A new file that is locked as long as this process lives, and its descriptor."""
    while True:
        temporary = temporary_name(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # without locks nothing can be taken for a leftover either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # another process removed it between its creation and its lock


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nothing has yet, for what is to get its name."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def written_as(temporary: str) -> str | None:
    """The name that something with a temporary_name is to get; None: it has no such name."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", temporary)
    return found[1] if found else None


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files and folders of `path` that no living process has locked."""
    for name in os.listdir(path.parent):
        if written_as(name) != path.name:
            continue
        left = path.with_name(name)
        folder = left.is_dir() and not left.is_symlink()
        with suppress(OSError):  # at work, finished meanwhile, or another user's
            descriptor = os.open(left, os.O_RDONLY if folder else os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if folder else os.unlink(left)
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in this folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8, names of files in it as their bytes are, whatever the locale."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: str | Path, do: str = "restore it from a copy, or make it anew") -> Any:
    """Reads a JSON file of ours.

    Raises BctError if it is missing or damaged; do: what its reader advises in the second case.
    """
    path = Path(path)
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path, or make the file again")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise BctError(f"{path} is not valid JSON ({error})", do) from None


def without_mark(path: Path, text: bytes) -> bytes:
    """A text file's bytes without the byte order mark that Windows puts before UTF-8. BctError for
    UTF-16."""
    if text[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise BctError(f"{path} is UTF-16 text", "save it as UTF-8")
    return text.removeprefix(codecs.BOM_UTF8)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's dict; json would keep the last of several entries of one name."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an entry occurs twice")
    return entries


def sha256(*parts: str | bytes) -> str:
    """Hex digest of strings and bytes; lengths are hashed too, so ("ab", "c") != ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def model_name(file: str | Path) -> str:
    """A short name for a model file: work_dirs/x/model.pt is x."""
    path = Path(file)
    return path.parent.name if path.stem in ("model", "best", "backbone") else path.stem
