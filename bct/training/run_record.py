"""run.json: the record of what is ours in a run's output, and of what the run depends on.

A file is named there before it is written, so that nothing else is ever replaced or removed. Every
checkpoint holds a copy, from which a lost run.json comes back.
"""

import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bct import distributed
from bct.errors import BctError
from bct.files import read_json, write_json, written_as

RECORD = "run.json"
FILES = (  # that every run may write
    *("config.py", "model.pt", "model.json", "best.pt", "best.json"),
    *("training.log", "metrics.jsonl", "bad_records.txt"),
)
FOLDERS = ("checkpoints", "tensorboard")
_OURS = re.compile(
    rf"{'|'.join(map(re.escape, FILES))}|nonfinite_rank\d+\.json|checkpoints/step_\d+\.pt|"
    r"tensorboard/events\.out\.tfevents\.[^/]+"
)


@dataclass
class RunRecord:
    """A run.

    Attributes:
        output: where it is.
        identity: what its result depends on, see run_identity.
        world_size: ranks of its latest start; None: not known.
        run: a random name, by which its checkpoints and event files know it.
        files: what it has written or is about to write, relative to output; the newest last.
        step: that of its latest checkpoint; 0 as long as there has been none.
        home: where it lived when this was written down, if that is known.
        longer: each time it was continued for more epochs: {"before": epochs, "now": epochs,
            "step": the first of these; None as long as no process has got there}.
    """

    output: Path
    identity: dict[str, Any]
    world_size: int | None
    finished: bool = False
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    files: list[str] = field(default_factory=list)
    step: int = 0
    home: str | None = None
    longer: list[dict[str, int | None]] = field(default_factory=list)

    def said(self) -> dict[str, Any]:
        """What run.json says."""
        keys = ("run", "finished", "step", "world_size", "identity", "files")
        about = {key: getattr(self, key) for key in keys}
        more = {"longer": self.longer} if self.longer else {}
        return {"by": "bct", "output": str(self.output.resolve()), **about, **more}

    def write(self) -> None:
        """Writes run.json, on rank 0."""
        if distributed.is_main():
            write_json(self.output / RECORD, self.said())

    def name(self, names: Iterable[str]) -> None:
        """Puts names last among the files. To be written down before these files are."""
        names = list(names)
        self.files = [name for name in self.files if name not in names] + names

    def owns(self, name: str) -> bool:
        """Whether a file, named relative to output, is one of this run's."""
        folder, _, last = name.rpartition("/")
        if whole := written_as(last):  # killed while it was written
            name = f"{folder}/{whole}" if folder else whole
        return name in self.files or (folder == "tensorboard" and last.endswith(self.events_suffix))

    @property
    def events_suffix(self) -> str:
        """How the names of its event files for TensorBoard end."""
        return f".run-{self.run}"


def read_record(output: str | Path) -> RunRecord | None:
    """What run.json says; None where there is none. BctError if it is damaged or not ours."""
    path = Path(output) / RECORD
    if not os.path.lexists(path):
        return None
    do = "restore it from a copy, or choose another output=..."
    return record_of(read_json(path, do), Path(output), f"{path} is no record of a run", do)


def record_of(said: Any, output: Path, what: str, do: str) -> RunRecord:
    """The record that a JSON or a checkpoint holds. BctError(what, do) if it holds none."""
    if not isinstance(said, dict):
        raise BctError(what, do)
    identity, finished = said.get("identity"), said.get("finished")
    ranks = said.get("world_size")
    fits = isinstance(identity, dict) and isinstance(finished, bool)
    if not fits or not isinstance(ranks, int | None) or isinstance(ranks, bool):
        raise BctError(what, do)
    if "by" not in said:  # from before files were named
        return RunRecord(output, identity, ranks, finished, files=_written_before(output))
    run, files, step = said.get("run"), said.get("files"), said.get("step", 0)
    named = isinstance(run, str) and re.fullmatch("[0-9a-f]{16}", run) and isinstance(files, list)
    if said["by"] != "bct" or not named or type(step) is not int:
        raise BctError(what, do)
    if not all(isinstance(name, str) and _OURS.fullmatch(name) for name in files):
        raise BctError(what, do)
    longer = said.get("longer", [])
    if not isinstance(longer, list) or not all(map(_is_longer, longer)):
        raise BctError(what, do)
    home = said.get("output")
    home = home if isinstance(home, str) else None
    return RunRecord(output, identity, ranks, finished, run, list(files), step, home, longer)


def _is_longer(said: Any) -> bool:
    counts = isinstance(said, dict) and said.keys() == {"before", "now", "step"}
    return counts and all(type(v) is int or (k == "step" and v is None) for k, v in said.items())


def lives_elsewhere(record: RunRecord) -> bool:
    """Whether the run has another folder, too: this one is a copy of it, or both have links to one
    folder of checkpoints."""
    if record.home is None or Path(record.home) == record.output.resolve():
        return False
    try:
        other = read_record(record.home)
    except (BctError, OSError, ValueError):
        return False
    return other is not None and other.run == record.run


def _written_before(output: Path) -> list[str]:
    """What a run has written whose run.json does not name files: all that are called so."""
    events = re.compile(r"tensorboard/events\.out\.tfevents\.\d+\..+\.\d+\.\d+")
    folders = ("checkpoints/*", "tensorboard/*")
    names = [
        path.relative_to(output).as_posix() for sub in ("*", *folders) for path in output.glob(sub)
    ]
    return sorted(
        name
        for name in names
        if _OURS.fullmatch(name) and (not name.startswith("tensorboard/") or events.fullmatch(name))
    )
