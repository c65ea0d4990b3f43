"""Files of tensors, as torch.save writes them: reading one executes nothing and checks its bytes;
equal values make equal files."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from bct.errors import BctError
from bct.files import atomic

_WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone")
_PREFIXES = ("module.", "backbone.")


def read_tensors(path: str | Path, verify: bool = True) -> Any:
    """torch.load on the CPU, of tensors and plain values only.

    Args:
        verify: compare the bytes with the CRC-32s in the file, which torch writes since 1.6 (files
            of older versions have none). False: just done.

    Raises BctError when the file is damaged or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path")
    do = "give a file saved by torch.save that holds only tensors; copy or make it again"
    try:
        if verify and zipfile.is_zipfile(path):
            refuse_damaged(path, do)
        return torch.load(path, map_location="cpu", weights_only=True)
    except BctError:
        raise
    except Exception as error:  # torch, pickle and zipfile raise a dozen kinds on damaged files
        reason = (str(error).splitlines() or [""])[0][:120]
        raise BctError(
            f"{path} can't be read as weights ({type(error).__name__}: {reason})", do
        ) from None


def save_tensors(path: str | Path, value: Any) -> None:
    """torch.save of tensors and plain values: the file is whole or as before.

    Equal values give equal bytes: an open file has no name that torch could put into the archive.

    Raises BctError, naming file and cause, when it can't be written.
    """
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            torch.save(value, file)
    except (OSError, RuntimeError) as error:  # torch's writer hides an OSError behind its own error
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = (getattr(cause, "strerror", None) or str(cause)).splitlines()[0]
        raise BctError(
            f"{path} can't be written ({reason})", "free some space, or mend the folder"
        ) from None


def refuse_damaged(path: str | Path, do: str) -> None:
    """Raises BctError for an archive in which a file's bytes have another CRC-32 than it says."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise BctError(f"{path} is damaged: {broken} in it has another checksum", do)


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The state_dict in a file or in a checkpoint of whatever system, without wrappers' prefixes.

    Raises BctError when there is none, or the file can't be read.
    """
    return unwrapped(path, read_tensors(path))


def unwrapped(path: str | Path, saved: Any) -> dict[str, torch.Tensor]:
    """The same of what read_tensors gave; path: for the message."""
    for key in _WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    tensors = isinstance(saved, dict) and saved and all(map(torch.is_tensor, saved.values()))
    if not tensors or not all(isinstance(key, str) for key in saved):
        raise BctError(f"{path} holds no state_dict", "give the network's own weights, model.pt")
    state = {}
    for key, value in saved.items():
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        state[key] = value
    return state
