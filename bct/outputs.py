"""Where results will be written: names that fit, folders that take them, asked before the work."""

import errno
import os
import tempfile
from pathlib import Path

from bct.errors import BctError
from bct.files import sha256

_ROOM = 200  # bytes of a name; a file system takes 255, of which a suffix and a mark take some
_MARK = ".xxxxxxxx.tmp"  # what bct.files.atomic puts behind a name, and a dot before it


def short_name(name: str, room: int = _ROOM) -> str:
    """A name of at most `room` bytes: its start, and a hash of it all where that is not all."""
    if len(os.fsencode(name)) <= room:
        return name
    start = name
    while len(os.fsencode(start)) > room - 13:
        start = start[:-1]
    return f"{start}_{sha256(os.fsencode(name))[:12]}"


def results_files(target: Path) -> list[Path]:
    """<target>.json and <target>.md, which every evaluation writes."""
    return [target.with_name(f"{target.name}.{kind}") for kind in ("json", "md")]


def check_outputs(*files: Path) -> None:
    """Raises BctError for files that can't be written, so that no work is done for nothing.

    Nothing is made for good: where a folder is not there yet, the one it will be made in is tried.
    """
    for file in files:
        folder = file.absolute().parent
        there = next(path for path in (folder, *folder.parents) if _exists(path))
        if not there.is_dir():
            raise BctError(f"{there} is no folder", "give another folder for the results, -o")
        _exists(there / f".{file.name}{_MARK}")
        if file.is_dir():
            raise BctError(
                f"{file} is a folder, and results are to have this name",
                "give another folder for the results, -o",
            )
        try:
            with tempfile.TemporaryDirectory(prefix=".bct-", dir=there):
                pass
        except OSError as error:
            raise BctError(
                f"nothing can be written to {there} ({error.strerror})",
                "give another folder for the results, -o",
            ) from None


def _exists(path: Path) -> bool:
    """Raises BctError for a path that is too long."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise BctError(
                f"{path.name[:60]}... is too long a name for a file", "give a shorter one"
            ) from None
        return False
    return True
