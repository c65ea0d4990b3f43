"""Timing that survives a noisy machine: candidates run in turn, ratios are taken within one run."""

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bct import distributed

RESULTS = Path(__file__).parent / "results"


def interleaved(
    candidates: dict[str, Callable[[], object]], repeats: int = 7
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, called in turn `repeats` times after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


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
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores, {versions}"


def start(doc: str, training: bool = True) -> argparse.Namespace:
    """Sets the process up as training does, if this is a part of training. --save keeps the printed
    table under results/."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<name>.md")
    parser.add_argument("--small", action="store_true", help="a tiny size, to see that it runs")
    if training:
        distributed.setup()
    return parser.parse_args()


def publish(args: argparse.Namespace, text: str) -> None:
    """Prints a result; with --save also writes it, with the machine and the command."""
    name = Path(sys.argv[0]).stem
    page = f"# {name}\n\n`python -m benchmarks.{name}` on {machine()}\n\n{text}\n"
    print(page)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
