"""Folders that are either whole or absent."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bct.files import remove_leftovers, temporary_name


@contextmanager
def atomic_folder(path: str | Path, manifest: str) -> Iterator[Path]:
    """Yields an empty folder beside `path`, to be filled.

    When the block ends well, it gets its name. A folder that has it by then is replaced if it holds
    a file called `manifest`, and is an OSError if it holds anything else. On any failure the new
    one is removed. What killed processes left of the same path is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary, descriptor = _locked_folder(path)
    try:
        yield temporary
        if (path / manifest).is_file():
            os.rename(path, temporary_name(path))  # a leftover from now on
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)
    remove_leftovers(path)


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder that is locked as long as this process lives, and its descriptor."""
    while True:
        temporary = temporary_name(path)
        os.mkdir(temporary)
        with suppress(FileNotFoundError):  # another process took it for a leftover
            descriptor = os.open(temporary, os.O_RDONLY)
            with suppress(OSError):  # without locks nothing can be taken for a leftover either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.exists(temporary):
                return temporary, descriptor
            os.close(descriptor)
