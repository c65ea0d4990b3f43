"""Commands that kill themselves before one of their changes of the disk."""

import builtins
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator

import torch

_CHANGES = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fchmod", "fsync", "remove")
_fork = multiprocessing.get_context("fork").Process


def kills(function: Callable[[], None], every: int = 1) -> Iterator[int]:
    """Runs a function again and again, in a process that is killed before its first, second, ...
    change of the disk, or `every` so many; yields after every kill. Ends when one came through."""
    for step in itertools.count(0, every):
        process = _fork(target=_killed_before, args=(step, function))
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        yield step


def _killed_before(step: int, function: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # those that torch had started are not in a forked process
    count = itertools.count()

    def counting(real):
        def call(*args, **kwargs):
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in _CHANGES:
        setattr(os, name, counting(getattr(os, name)))
    builtins.open = counting(builtins.open)
    function()
