"""How long every command takes from its start to the end of --help, and `import bct`.

    python -m benchmarks.start [--against <another checkout>] [--turns 5]

The commands of both checkouts start in turn, each with its own modules on PYTHONPATH. A command
that one of the two lacks, or that fails there, has an empty field.
"""

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from bct.command import run_cli
from bct.errors import BctError
from bct.files import ROOT
from benchmarks.common import in_turn, median, seconds, spread

SCRIPTS = ("train_old.py", "methods/*/train.py", "tools/*.py", "eval/*.py")
IMPORT = "import bct"


def commands(tree: Path) -> dict[str, list[str]]:
    """What Python is started with, by the name that the table shows."""
    files = [file for pattern in SCRIPTS for file in sorted(tree.glob(pattern))]
    scripts = [file for file in files if "__main__" in file.read_text(encoding="utf-8")]
    if not scripts:
        raise BctError(f"{tree} has no scripts of bct", "name a checkout's top folder")
    named = {str(file.relative_to(tree)): [str(file), "--help"] for file in scripts}
    return {IMPORT: ["-c", IMPORT], **named}


def run(tree: Path, arguments: list[str]) -> bool:
    """Whether Python, started with these arguments, ends well."""
    done = subprocess.run(  # noqa: S603 - our own scripts
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one turn of two commands")
    args = parser.parse_args()
    trees = [ROOT, *([args.against.resolve()] if args.against else [])]
    given = [commands(tree) for tree in trees]
    names = list(dict.fromkeys(name for tree in given for name in tree))
    names, turns = (names[:2], 1) if args.small else (names, args.turns)

    print("| command | seconds | there | ratio |\n|:--|:--|:--|--:|")
    for name in names:
        calls = {
            place: partial(seconds, partial(run, tree, found[name]))
            for place, (tree, found) in enumerate(zip(trees, given, strict=True))
            if name in found and run(tree, found[name])
        }
        times = in_turn(calls, turns)
        cells = [spread(times[place], digits=2) if place in times else "" for place in (0, 1)]
        ratio = ""
        if len(times) == 2:
            ratio = f"{median([a / b for a, b in zip(times[0], times[1], strict=True)]):.2f}"
        print(f"| {name} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    run_cli(main)
