"""Embeddings that are being written, by several ranks: what is done survives a kill.

    <name>.part/rows.npy         float32 (N, D), a row per image
                state.npy        uint8 (N,): WAITING, DONE, LEFT_OUT
                progress.json    what the rows are made from

A row is on the disk before its state says so: at most the rows since the last save are done again.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError
from bct.files import atomic, read_json, remove_leftovers, write_json, written_as
from bct.stored.artefacts import take_room

WAITING, DONE, LEFT_OUT = range(3)
_FORMAT = "bct-unfinished"
_PENDING = 1 << 16  # rows after which it is saved in any case
_FILES = ("rows.npy", "state.npy", "progress.json")


class Unfinished:
    """Rows on their way, the same on all ranks; each fills its own.

    Attributes:
        folder: where they are. rows: float32 (N, D), mapped. state: uint8 (N,), mapped.
    """

    def __init__(self, folder: Path, every: float):
        """Opens what `begin` has made; every: seconds between two saves."""
        self.folder, self.every = folder, every
        self.rows = np.lib.format.open_memmap(folder / "rows.npy", "r+")
        self.state = np.lib.format.open_memmap(folder / "state.npy", "r+")
        # of rows not saved yet; in one piece, for small arrays that stay would scatter the heap
        self._index, self._new = np.empty(_PENDING, np.int64), np.empty(_PENDING, np.uint8)
        self._count, self._saved = 0, time.monotonic()

    def add(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Rows float32 (B, D) of the images `index`, int64 (B,); saved within `every` seconds."""
        self.rows[index] = rows
        self._set(index, DONE)

    def leave_out(self, index: np.ndarray) -> None:
        self._set(index, LEFT_OUT)

    def _set(self, index: np.ndarray, state: int) -> None:
        for start in range(0, len(index), _PENDING):
            part = index[start : start + _PENDING]
            if self._count + len(part) > _PENDING:
                self.save()
            new = slice(self._count, self._count + len(part))
            self._index[new], self._new[new] = part, state
            self._count = new.stop
        if time.monotonic() - self._saved >= self.every:
            self.save()

    def save(self) -> None:
        self.rows.flush()  # before the state: a power cut must not leave a state without its row
        self.state[self._index[: self._count]] = self._new[: self._count]
        self.state.flush()
        self._count, self._saved = 0, time.monotonic()


def part_folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}.part")


def begin(out: Path, shape: tuple[int, int], made_from: dict[str, Any], again: str | None) -> int:
    """Makes the folder for `out`, or finds the one that a stopped run has left. For one process.

    Args:
        shape: of the rows, (N, D). made_from: what they depend on.
        again: "resume" goes on with what is there, "overwrite" begins anew, None refuses it.

    Returns:
        A descriptor that locks the folder until it is closed.

    Raises BctError: a folder that is not ours, that another process fills, or that was made from
    something else.
    """
    folder = part_folder(out)
    _record(folder)  # refuses what is not ours, before anything is made
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        _lock(lock, out)
        said, done = _record(folder), finished(folder)
        if done and again is None:
            raise BctError(
                f"{folder} holds {done} of {shape[0]} embeddings of a run that was stopped",
                "go on with --resume, or begin anew with --overwrite",
            )
        if done and again == "resume":
            _require_same(folder, said, made_from)
        about = {"format": _FORMAT, "made_from": made_from, "shape": list(shape)}
        if not done or again == "overwrite" or not _whole(folder, shape):
            _remove_files(folder)
            write_json(folder / "progress.json", about)
            _create(folder, shape)
        state = np.lib.format.open_memmap(folder / "state.npy", "r+")
        state[state == LEFT_OUT] = WAITING  # why is asked again
        state.flush()
    except BaseException:
        os.close(lock)
        raise
    return lock


def finished(folder: Path) -> int:
    """How many rows of a stopped run are done."""
    try:
        return int((np.lib.format.open_memmap(folder / "state.npy", "r") == DONE).sum())
    except (OSError, ValueError):
        return 0


def remove(folder: Path) -> None:
    """Removes a folder of ours, if there is one; what else somebody has put into it stays."""
    if _record(folder) is not None:
        _remove_files(folder)
        with suppress(OSError):
            folder.rmdir()


def _record(folder: Path) -> dict[str, Any] | None:
    """What progress.json says; {} if the folder was just made, None if there is none. BctError for
    a folder that is not ours."""
    if not os.path.lexists(folder):
        return None
    ours = folder.is_dir() and not folder.is_symlink()
    if ours and not any(written_as(name) not in _FILES for name in os.listdir(folder)):
        return {}
    said = read_json(folder / "progress.json") if (folder / "progress.json").is_file() else None
    if not ours or not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise BctError(
            f"{folder} is not ours, and unfinished embeddings are to have this name",
            "move it away, or give another name, -o",
        )
    return said


def _lock(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BctError(
            f"another process writes {out}", "wait for it, or give another name, -o"
        ) from None
    except OSError:
        pass  # a file system without locks


def _require_same(folder: Path, said: dict[str, Any], made_from: dict[str, Any]) -> None:
    before = said.get("made_from")
    before = before if isinstance(before, dict) else {}
    other = [key for key in {**made_from, **before} if made_from.get(key) != before.get(key)]
    if other:
        raise BctError(
            f"{folder} was begun with another {other[0]}: {before.get(other[0])!s:.80}, now it is "
            f"{made_from.get(other[0])!s:.80}",
            "give the same model, images and settings, or begin anew with --overwrite",
        )


def _whole(folder: Path, shape: tuple[int, int]) -> bool:
    try:
        rows, state = (np.lib.format.open_memmap(folder / name, "r") for name in _FILES[:2])
    except (OSError, ValueError):
        return False
    return (rows.shape, rows.dtype, state.shape, state.dtype) == (shape, "f4", shape[:1], "u1")


def _create(folder: Path, shape: tuple[int, int]) -> None:
    rows = folder / "rows.npy"
    try:  # a full disk shows here; in a mapped file it would end the process
        np.lib.format.open_memmap(rows, "w+", np.float32, shape)
        take_room(rows)
    except OSError as error:
        error.filename = error.filename or str(rows)
        remove(folder)
        raise
    with atomic(folder / "state.npy") as temporary:  # last: there is one only beside whole rows
        np.lib.format.open_memmap(temporary, "w+", np.uint8, shape[:1]).flush()


def _remove_files(folder: Path) -> None:
    for name in _FILES:  # the record last
        (folder / name).unlink(missing_ok=True)
        remove_leftovers(folder / name)
