"""Files that are either whole or absent, and the hashes that tell whether they are still valid."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bct.errors import BctError

ROOT = (
    Path(__file__).resolve().parent.parent
)  # of the repository: relative paths in configs start here


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it on success, removes it on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file of ours. Raises BctError if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path, or make the file again")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BctError(
            f"{path} is not valid JSON ({error})", "delete it and make it again"
        ) from None


def sha256(*parts: str | bytes) -> str:
    """Hex digest of strings and bytes; lengths are hashed too, so ("ab", "c") != ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def model_name(file: str | Path) -> str:
    """A short name for a model file: work_dirs/x/model.pt is x."""
    path = Path(file)
    return path.parent.name if path.stem in ("model", "best", "backbone") else path.stem
