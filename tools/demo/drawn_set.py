"""A folder that a tool draws from a seed: whole or absent, and known again by its manifest."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError
from bct.files import read_json, sha256, write_json
from bct.folders import atomic_folder


def make(out: Path, manifest: str, settings: dict[str, Any], draw: Callable[[Path], dict]) -> str:
    """Draws a set into `out`, unless it is there, and says what is there in a line.

    Args:
        manifest: name of the JSON file that says what the folder is; it is written last.
        settings: what the set's bytes follow from.
        draw: fills a folder in, returns {what: how many}.

    Raises:
        BctError: the folder holds anything else, another such set or a damaged one.
    """
    out = Path(os.path.realpath(out))  # which takes a link to itself, too
    if not out.is_dir() or any(out.iterdir()):
        found = _found(out, manifest, settings)
        if found is not None:
            return _line("reusing", out, found)
    with atomic_folder(out, manifest) as folder:
        counts = draw(folder)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        about = {"counts": counts, "sha256": digest(folder, names), "files": names}
        write_json(folder / manifest, settings | about)
    return _line("wrote", out, counts)


def digest(folder: Path, names: list[str]) -> str | None:
    """A hash of files' names and bytes, None if one is missing."""
    if not all((folder / name).is_file() for name in names):
        return None
    return sha256(*[part for name in names for part in (name, (folder / name).read_bytes())])


def stream(seed: int, *use: int) -> np.random.Generator:
    """A random stream of its own for every use of a seed."""
    return np.random.default_rng([*use, len(use), seed])


def _found(out: Path, manifest: str, settings: dict[str, Any]) -> dict[str, int] | None:
    """Counts of the set that lies there, None if there is nothing."""
    if not os.path.lexists(out):
        return None
    if not (out / manifest).is_file():
        raise BctError(
            f"{out} exists and was not drawn by this tool (it has no {manifest})",
            "give another folder; this one is left as it is",
        )
    about = read_json(out / manifest, "move the folder away, and draw the set again")
    about = about if isinstance(about, dict) else {}
    for name, value in settings.items():
        if about.get(name) != value:
            raise BctError(
                f"{out} holds another set: {name} is {about.get(name)!r}, asked for is {value!r}",
                "give another folder, or move this one away",
            )
    files, counts = about.get("files"), about.get("counts")
    names = isinstance(files, list) and all(isinstance(name, str) for name in files)
    there = digest(out, files) if names and isinstance(counts, dict) else None
    if there is None or there != about.get("sha256"):
        raise BctError(
            f"{out} is damaged: a file of the set is missing or changed",
            "move the folder away, and draw the set again",
        )
    return counts


def _line(done: str, out: Path, counts: dict[str, int]) -> str:
    return f"{done} {out}: " + ", ".join(f"{count} {what}" for what, count in counts.items())
