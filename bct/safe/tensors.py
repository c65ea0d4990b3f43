"""Reading what torch.save wrote: nothing in the file is executed, and its bytes are checked."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from bct.errors import BctError


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
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken:
                raise BctError(f"{path} is damaged: {broken} in it has another checksum", do)
        return torch.load(path, map_location="cpu", weights_only=True)
    except BctError:
        raise
    except Exception as error:  # torch, pickle and zipfile raise a dozen kinds on damaged files
        reason = (str(error).splitlines() or [""])[0][:120]
        raise BctError(
            f"{path} can't be read as weights ({type(error).__name__}: {reason})", do
        ) from None
