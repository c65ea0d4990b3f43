"""Measuring on a noisy machine: candidates run in turn, ratios are taken within one run.

A benchmark is a module with a main() that calls `start`, makes a `Row` of every workload (mostly by
`compare`: ours, the classic way, the machine's limit) and hands them to `publish`.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from bct import distributed
from bct.files import atomic, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass
class Goal:
    """What a workload has to reach; None: not asked for.

    times: at least so many times as fast (or small) as the classic way; share: at least this share
    of the limit's rate; at_most: in the row's own unit; gib: peak memory of the process.
    """

    times: float | None = None
    share: float | None = None
    at_most: float | None = None
    gib: float | None = None


@dataclass
class Row:
    """One workload. ours, classic and limit hold a number per repetition, the less the better:
    seconds of a call, or what `unit` says.

    Args:
        items: how many things a call works on; with a unit like "images/s" their rate is shown.
        limit_name: what the limit is, e.g. "bare decoder".
        gib: peak resident memory of the process in GiB.
    """

    workload: str
    ours: list[float]
    classic: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    limit_name: str = ""
    unit: str = "s"
    items: float = 1.0
    gib: float | None = None
    goal: Goal = field(default_factory=Goal)

    @property
    def times(self) -> float | None:
        """How many times as fast as the classic way; of repetitions that ran in turn, the median
        of their ratios."""
        if not self.classic:
            return None
        if len(self.classic) == len(self.ours):
            pairs = zip(self.classic, self.ours, strict=True)
            return median([slow / fast for slow, fast in pairs])
        return median(self.classic) / median(self.ours)

    @property
    def share(self) -> float | None:
        """Share of the limit's rate."""
        return median(self.limit) / median(self.ours) if self.limit else None

    def missed(self) -> list[str]:
        """The parts of the goal that are not reached."""
        goal, out = self.goal, []
        if goal.times and (self.times or 0) < goal.times:
            out.append(f"{_number(goal.times)} times")
        if goal.share and (self.share or 0) < goal.share:
            out.append(f"{goal.share:.0%}")
        if goal.at_most and median(self.ours) > goal.at_most:
            out.append(f"{_number(goal.at_most)} {self.unit}")
        if goal.gib and (self.gib or 0) > goal.gib:
            out.append(f"{_number(goal.gib)} GiB")
        return out

    def shown(self, values: list[float]) -> str:
        """ "median (min to max)" in the row's unit, "" of nothing."""
        if not values:
            return ""
        if self.unit.endswith("/s"):
            values = [self.items / value for value in values]
        low, middle, high = (_number(x) for x in (min(values), median(values), max(values)))
        return f"{middle} {self.unit}" + (f" ({low} to {high})" if len(values) > 1 else "")


def compare(
    workload: str,
    ours: Callable[[], object],
    classic: Callable[[], object] | None = None,
    limit: Callable[[], object] | None = None,
    *,
    repeats: int = 5,
    once: bool = False,
    **about: object,
) -> Row:
    """Times the candidates in turn and returns their row.

    Args:
        once: the classic way is so slow that it runs a single time, without a warm-up.
        about: the row's other fields. gib is this process's peak before the classic way runs, if
            that runs once; else the peak of all.
    """
    given = {"ours": ours, "classic": None if once else classic, "limit": limit}
    times = interleaved({name: call for name, call in given.items() if call}, repeats)
    about = {"gib": peak_gib(), **about}
    if once and classic:
        times["classic"] = [seconds(classic)]
    return Row(workload, **times, **about)


def interleaved(
    candidates: dict[str, Callable[[], object]], repeats: int = 7
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, called in turn `repeats` times after one warm-up."""
    return in_turn({name: partial(seconds, call) for name, call in candidates.items()}, repeats)


def in_turn(candidates: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What candidates that time themselves return, called as by `interleaved`."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, call in candidates.items():
            value = call()
            if turn:
                found[name].append(value)
    return found


def seconds(call: Callable[[], object]) -> float:
    """Of a call; freeing its result is not a part of it."""
    began = time.perf_counter()
    result = call()
    took = time.perf_counter() - began
    del result
    return took


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def products(
    size: int, count: int, dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], None], float]:
    """A call of so many bare square matrix products, and its floating-point operations."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)

    def call() -> None:
        for _ in range(count):
            torch.mm(a, b)
        synchronize(device)

    return call, 2.0 * size**3 * count


def median(times: list[float]) -> float:
    return statistics.median(times)


def spread(times: list[float], scale: float = 1.0, digits: int = 3) -> str:
    """ "median (min to max)"."""
    low, middle, high = min(times) * scale, median(times) * scale, max(times) * scale
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """The machine in words: processor, instruction set, cores, GPU."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    parts = [name, torch.backends.cpu.get_cpu_capability(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts)


def slug() -> str:
    """The machine as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")


def start(doc: str, training: bool = True) -> argparse.Namespace:
    """Sets the process up as training does, if this is a part of training. --save keeps the rows
    in results/<machine>."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    parser.add_argument("--small", action="store_true", help="a tiny size, to see that it runs")
    if training:
        distributed.setup()
    return parser.parse_args()


def publish(args: argparse.Namespace, rows: list[Row], details: str = "") -> None:
    """Prints a benchmark's result; with --save keeps it in results/<machine>.json and .md.

    Args:
        details: Markdown for below the table: parts, sizes, what was checked.
    """
    name = Path(sys.argv[0]).stem
    entry = {
        "command": f"python -m benchmarks.{name}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "rows": [asdict(row) for row in rows],
        "details": details.strip(),
    }
    print(section(name, entry))
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{slug()}.json"
        result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        result = {"machine": machine(), "benchmarks": {**result.get("benchmarks", {}), name: entry}}
        write_json(file, result)
        with atomic(file.with_suffix(".md")) as temporary:
            temporary.write_text(page(result), encoding="utf-8")


def rows_of(entry: dict) -> list[Row]:
    """The rows of a benchmark in a results file."""
    return [Row(**{**row, "goal": Goal(**row["goal"])}) for row in entry["rows"]]


def page(result: dict) -> str:
    """A machine's results as Markdown: all workloads in one table, then each benchmark."""
    benchmarks = dict(sorted(result["benchmarks"].items()))
    rows = [row for entry in benchmarks.values() for row in rows_of(entry)]
    return "\n\n".join(
        [
            f"# Measured on {result['machine']}",
            "Written by `make bench`. Each figure is the median of repetitions that ran in turn, "
            "in brackets the least and the largest; the peak memory is the process's.",
            table(rows),
            *(section(name, entry) for name, entry in benchmarks.items()),
        ]
    ).rstrip() + "\n"  # fmt: skip


def section(name: str, entry: dict) -> str:
    rows = rows_of(entry)
    head = f"## {name}\n\n`{entry['command']}`, {entry['date']}, {entry['versions']}"
    return "\n\n".join(part for part in (head, table(rows), entry["details"]) if part)


def table(rows: list[Row]) -> str:
    """All of the rows' figures as a Markdown table."""
    if not rows:
        return ""
    lines = [
        "| workload | ours | classic way | times | limit | share | GiB | goal | reached |",
        "|---|---|---|---:|---|---:|---:|---|---|",
    ]
    for row in rows:
        missed = row.missed()
        wanted = [
            f">= {_number(row.goal.times)} times" if row.goal.times else "",
            f">= {row.goal.share:.0%} of the limit" if row.goal.share else "",
            f"<= {_number(row.goal.at_most)} {row.unit}" if row.goal.at_most else "",
            f"<= {_number(row.goal.gib)} GiB" if row.goal.gib else "",
        ]
        goal = ", ".join(part for part in wanted if part)
        cells = [
            row.workload,
            row.shown(row.ours),
            row.shown(row.classic),
            _number(row.times) if row.times else "",
            f"{row.limit_name}: {row.shown(row.limit)}" if row.limit else "",
            f"{row.share:.0%}" if row.share else "",
            f"{row.gib:.2f}" if row.gib is not None else "",
            goal,
            ("no: " + ", ".join(missed) if missed else "yes") if goal else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(x: float) -> str:
    """Three significant digits, without an exponent."""
    if x == 0 or abs(x) >= 100:
        return f"{x:,.0f}"
    digits = 2 if abs(x) >= 1 else 3 if abs(x) >= 0.1 else 5
    text = f"{x:.{digits}f}" if abs(x) < 10 else f"{x:.1f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
