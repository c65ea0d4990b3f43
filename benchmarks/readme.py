"""Writes the README's table of speeds from a machine's results.

    python -m benchmarks.readme [results/<machine>.json]

Without an argument the machine that the README's marker names stays.
"""

import json
import re
import sys
from pathlib import Path

from bct.command import run_cli
from bct.errors import BctError
from bct.files import ROOT, atomic
from benchmarks.common import RESULTS, rows_of

MARKER = re.compile(r"<!-- speed: (\S+) -->\n.*?<!-- end of speed -->", re.DOTALL)


def readme_table(result: dict) -> str:
    """The README's lines: of every workload that has something to be compared with."""
    lines = ["| | ours | classic way | times as fast | of the limit |", "|:--|:--|:--|--:|--:|"]
    for _, entry in sorted(result["benchmarks"].items()):
        for row in rows_of(entry):
            if row.times or row.share or row.goal.at_most:
                times = f"{row.times:.1f}" if row.times else ""
                share = f"{row.share:.0%}" if row.share else ""
                ours, classic = (row.shown(v).split(" (")[0] for v in (row.ours, row.classic))
                lines.append(f"| {row.workload} | {ours} | {classic} | {times} | {share} |")
    return "\n".join(lines)


def filled(readme: str, machine: str | None = None) -> str:
    """The README with its table written anew. BctError if it has no place for one."""
    found = MARKER.search(readme)
    if found is None:
        raise BctError("the README has no speed marker", "put <!-- speed: machine --> back")
    machine = machine or found[1]
    file = RESULTS / f"{machine}.json"
    if not file.is_file():
        raise BctError(f"{file} does not exist", "make it on that machine: make bench")
    result = json.loads(file.read_text(encoding="utf-8"))
    body = f"On {result['machine']}:\n\n{readme_table(result)}"
    text = f"<!-- speed: {machine} -->\n{body}\n<!-- end of speed -->"
    return readme[: found.start()] + text + readme[found.end() :]


def main() -> None:
    machine = Path(sys.argv[1]).stem if len(sys.argv) > 1 else None
    file = ROOT / "README.md"
    text = filled(file.read_text(encoding="utf-8"), machine)
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_cli(main)
