"""One run in an output at a time: a lock that lives as long as the process that has taken it.

flock of `run.lock`; the file says who has it. The kernel lets go of it however a process ends, so
nothing is left to be cleared away by hand.
"""

import errno
import fcntl
import os
import re
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from bct.errors import BctError

NAME = "run.lock"
_SAYS = re.compile(r"process \d+ on host .* is training here\n")
_TRIES, _WAIT = 4, 0.1  # a run that is just ending, or one that only looks, holds it for a moment
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)

_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked worker that outlives its parent would keep the output locked."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


def take_lock(output: Path) -> int:
    """Locks an output for this process and returns the descriptor, for release_lock.

    Raises:
        BctError: another process trains there; run.lock is not ours; no locks on this file system.
    """
    path = output / NAME
    for last in [False] * (_TRIES - 1) + [True]:
        descriptor = _locked(path, output, last)
        if descriptor is not None:
            break
        time.sleep(_WAIT)
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        mine = f"process {os.getpid()} on host {socket.gethostname()} is training here\n"
        os.write(descriptor, mine.encode())
    except BaseException:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def _locked(path: Path, output: Path, last: bool) -> int | None:
    """A descriptor that has the lock; None: it is taken, and this was not the last attempt."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
        try:
            file = stat.S_ISREG(os.fstat(descriptor).st_mode)  # reading a FIFO waits for ever
            said = os.read(descriptor, 1000).decode(errors="replace") if file else ""
            if not file or (said and not _SAYS.fullmatch(said)):
                raise BctError(
                    f"{path} is not a lock of this program's",
                    "choose another output=..., or move that file away",
                )
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                taken, descriptor = descriptor, None
                return taken
            # the run that had it has ended between the two calls, and removed it: once more
        except OSError as error:
            if error.errno not in _TAKEN:
                raise BctError(
                    f"{path} can't be locked: {error.strerror}",
                    "make sure that nothing else trains there, and pass lock=False",
                ) from None
            if last:
                who = said.removesuffix(" is training here\n") or "another process"
                raise BctError(
                    f"{who} is training in {output}",
                    "wait for its end, stop it, or choose another output=...",
                ) from None
            return None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def release_lock(output: Path, descriptor: int) -> None:
    """Lets go of it and removes run.lock."""
    _held.discard(descriptor)
    with suppress(OSError):  # somebody has moved the folder: the lock ends all the same
        if os.path.samestat(os.stat(output / NAME), os.fstat(descriptor)):
            os.unlink(output / NAME)
    os.close(descriptor)
