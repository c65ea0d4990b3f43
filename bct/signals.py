"""Stopping on request: SIGTERM, SIGUSR1, SIGINT or SIGHUP ends a run after its next step, with a
checkpoint; a second SIGINT ends it at once."""

import os
import signal
import threading

import torch
import torch.distributed as dist

from bct import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Remembers a signal until the ranks have agreed on it. A context manager.

    Ranks agree through a gloo group of their own, on the CPU, while the next step runs: nothing
    waits for the device, and all of them stop after the same step whichever got the signal.
    """

    def __init__(self) -> None:
        self.received, self.interrupts = 0, 0
        self.group = dist.new_group(backend="gloo") if distributed.world_size() > 1 else None
        self.asked: tuple[torch.Tensor, dist.Work] | None = None

    def agreed(self) -> int:
        """The signal to stop for, 0 if there is none; every rank has to call it after each step.

        With several ranks it is what was known at the call before.
        """
        if self.group is None:
            return self.received
        known = 0
        if self.asked is not None:
            number, work = self.asked
            work.wait()
            known = int(number)
        number = torch.tensor(self.received)
        self.asked = (
            number,
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group, async_op=True),
        )
        return known

    def ask(self, number: int) -> None:
        """As if that signal had come; one that has come before stands."""
        self.received = self.received or number

    def __enter__(self) -> "StopRequest":
        # what is ignored stays so: nohup ignores SIGHUP, a shell SIGINT for its background jobs
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._remember) for number in heeded}
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.asked is not None and error is None:
            self.asked[1].wait()  # nothing may be under way when the group ends

    def _remember(self, number: int, _: object) -> None:
        self.interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self.interrupts > 1:  # whatever has come between the two
            raise KeyboardInterrupt
        self.received = number


def leave_to_parent(_: int) -> None:
    """For worker processes: a signal to the whole job is the main process's to act on.

    Schedulers signal every process, and a run whose workers are gone could not finish its step. But
    SIGTERM from the main process itself is how workers are told to end.
    """
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
