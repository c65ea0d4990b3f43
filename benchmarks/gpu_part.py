"""What the parts of the GPU benchmark share: their time, their results, timing within memory."""

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.common import Row, interleaved, median, peak_gib, products, synchronize


class OutOfTime(BaseException):
    """A part's time is up. No Exception: libraries that go on after those must not go on here."""


@dataclass
class Part:
    """A part's means, and its results as they come: what is here survives whatever ends the part.

    Args:
        seconds: it may take.
        small: tiny sizes, to see that it runs.

    Attributes:
        lines: Markdown for the details.
        pending: the cases not measured yet, those being measured included.
        error: what ended the part early, else "".
    """

    name: str
    device: torch.device
    small: bool
    seconds: float
    rows: list[Row] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    error: str = ""

    def __post_init__(self):
        self.deadline = time.monotonic() + self.seconds

    def cases(self, names: list[str]) -> Iterator[str]:
        """The names in turn, until less time is left than the longest of them took."""
        self.pending, longest = list(names), 0.0
        for name in names:
            began = time.monotonic()
            if self.deadline - began < longest:
                return
            yield name
            self.pending.remove(name)
            longest = max(longest, time.monotonic() - began)

    def details(self) -> str:
        """Its results in Markdown, with what it did not measure and why."""
        lines = [f"### {self.name}", "", *self.lines]
        if self.error:
            lines += ["", f"Ended early: {self.error}"]
        if self.pending:
            why = "" if self.error else " for lack of time"
            lines += ["", f"Not measured{why}: {'; '.join(self.pending)}."]
        return "\n".join(lines) + "\n"


def run(part: Part, measure: Callable[[Part], None]) -> bool:
    """Runs a part. False if it failed: its error is printed and noted, and the others can run.

    A part that takes too long is stopped and has not failed.
    """
    ok = True
    try:
        with _time_limit(part.seconds):
            torch.set_float32_matmul_precision("highest")  # torch's default; parts change it
            measure(part)
    except OutOfTime:
        part.error = f"stopped after its {part.seconds:.0f} s."
    except Exception as error:
        traceback.print_exc()
        reason = str(error).strip().split("\n")[0][:200]
        part.error, ok = f"{type(error).__name__}: {reason}", False
    free(part.device)
    return ok


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free(device: torch.device) -> None:
    """Gives memory that nothing refers to back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def several(step: Callable[[], object], count: int, device: torch.device) -> Callable[[], None]:
    """A call of so many steps that ends when the device has done them."""

    def call() -> None:
        for _ in range(count):
            step()
        synchronize(device)

    return call


def compare(
    device: torch.device,
    builders: dict[str, Callable[[], Callable[[], object]]],
    repeats: int,
    together: bool = True,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times candidates that may not fit into the device's memory.

    Args:
        builders: each returns a call that works until the device is done; by name.
        together: keep all of them and call them in turn; else each alone, before the next is built.

    Returns:
        Seconds per call of each candidate, [] of one that ran out of memory; and the GiB that each
        took at most beyond what was there before (on a CPU: the process's peak).
    """
    times: dict[str, list[float]] = {name: [] for name in builders}
    calls, gib = {}, {}
    for name, build in builders.items():
        try:
            calls[name], gib[name] = _first_call(device, build)
        except torch.OutOfMemoryError:
            print(f"{name}: out of memory", flush=True)
        free(device)
        if not together and name in calls:
            times[name] = interleaved({name: calls.pop(name)}, repeats)[name]
            free(device)
    try:
        return times | interleaved(calls, repeats), gib
    except torch.OutOfMemoryError:  # what each fits into beside those before may not hold for all
        calls.clear()
    free(device)
    return compare(device, builders, repeats, together=False)


def _first_call(device: torch.device, build: Callable) -> tuple[Callable[[], object], float]:
    """Builds a candidate and calls it once, to load and tune kernels; and the GiB it took."""
    if device.type != "cuda":
        call = build()
        call()
        return call, peak_gib()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call = build()
    call()
    return call, (torch.cuda.max_memory_allocated(device) - before) / 2**30


def gemm(device: torch.device, small: bool) -> tuple[Callable[[], None], float]:
    """A call that multiplies two matrices of 8192 x 8192 in bf16 (fp32 on a CPU), and its FLOPs."""
    n, count = (256, 2) if small else (8192, 10)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return products(n, count, dtype, device)


def gemm_rate(device: torch.device, small: bool) -> float:
    """FLOP/s of bare matrix products, see gemm."""
    call, flops = gemm(device, small)
    return flops / median(interleaved({"": call}, 5)[""])
