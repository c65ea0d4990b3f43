"""Which space vectors live in: the fingerprint of the model version that made them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from bct.errors import BctError
from bct.files import read_json, write_json

_FORMAT, _VERSION = "bct-fingerprint", 1


class Fingerprint(NamedTuple):
    """weights: sha256 of the model's file, 64 hex digits. view: how its network sees an image, as
    model.json has it; None if that is not known. width: of its vectors."""

    weights: str
    view: dict[str, Any] | None
    width: int

    def __str__(self) -> str:
        return f"{self.weights[:12]} ({self.width}-d, {_words(self.view)})"

    def require_same(self, other: "Fingerprint", whose: str = "the vectors") -> None:
        """Raises BctError, naming both, unless vectors of the two can be compared."""
        if self != other:
            raise BctError(
                f"{whose} are of another space: {other}, expected {self}",
                "embed with the same model and view, or map them with an adapter",
            )

    def entries(self) -> dict[str, Any]:
        """What a file says of it."""
        return {"format": _FORMAT, "version": _VERSION, **self._asdict()}

    @classmethod
    def of_entries(cls, said: Any, path: str | Path) -> "Fingerprint":
        """From what a file says. BctError for a newer version or anything else."""
        version = require_format(said, path, _FORMAT, _VERSION)
        try:
            found = cls(said["weights"], said["view"], said["width"])
            known = re.fullmatch("[0-9a-f]{64}", found.weights) and found.width > 0
        except (KeyError, TypeError):
            known = False
        if not known or not isinstance(found.view, dict | None) or type(found.width) is not int:
            raise BctError(
                f"{path} holds no fingerprint of version {version}", "write the file again"
            )
        return found

    def save(self, path: str | Path) -> None:
        write_json(path, self.entries())

    @classmethod
    def load(cls, path: str | Path) -> "Fingerprint":
        """Reads what save wrote. BctError for anything else."""
        return cls.of_entries(read_json(path), path)


def require_format(said: Any, path: str | Path, name: str, newest: int) -> int:
    """The version of a JSON file of this format. BctError if it is another's, or too new."""
    version = said.get("version") if isinstance(said, dict) else None
    if type(version) is not int or version < 1 or said.get("format") != name:
        raise BctError(f"{path} is no {name} file", "give a file that bct has written")
    if version > newest:
        raise BctError(f"{path} has version {version} of {name}, we read {newest}", "update bct")
    return version


def _words(view: dict[str, Any] | None) -> str:
    if view is None:
        return "view unknown"
    return ", ".join(f"{key} {value}" for key, value in view.items())
