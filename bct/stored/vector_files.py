"""Embeddings that somebody else computed, one row per image, in a NumPy file."""

import math
import warnings
import zipfile
from pathlib import Path

import numpy as np

from bct.errors import BctError

_BLOCK = 1 << 16  # rows looked at together: a memory-mapped file is never whole in memory
_DEFLATE = 1040  # how many times its size deflated data can have


def stored_embeddings(path: str | Path, rows: int) -> np.ndarray:
    """Opens the embeddings of `rows` images, in the images' order.

    Args:
        path: a .npy file, or a .npz with one array or one that is called "embeddings".
        rows: n, how many there have to be.

    Returns:
        (n, D) of the file's own float type, D > 0; a .npy is memory-mapped, read-only.

    Raises:
        BctError: no such file or none of these, another shape or type, or values not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise BctError(f"embeddings {path} do not exist", "check the path")
    try:
        with warnings.catch_warnings():  # of odd headers and shapes, which are checked here
            warnings.simplefilter("ignore")
            found = _from_archive(path) if _is_archive(path) else _mapped(path)
    except BctError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        reason = " ".join(str(error).split())[:120]
        raise BctError(
            f"{path} can't be read as embeddings ({type(error).__name__}: {reason})",
            "write it with np.save(path, array) or np.savez(path, embeddings=array)",
        ) from None
    if len(found) != rows:
        raise BctError(
            f"{path} has {len(found)} rows for {rows} images",
            "store one row for each image, in their order",
        )
    for start in range(0, rows, _BLOCK):
        finite = np.isfinite(found[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            raise BctError(
                f"{path}: row {start + int(finite.argmin())} is not finite",
                "compute that image's embedding again",
            )
    return found


def _mapped(path: Path) -> np.ndarray:
    found = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    _check_kind(path, found.dtype, found.shape)
    if found.offset + found.nbytes != path.stat().st_size:  # with another shape rows would shift
        raise ValueError(f"{found.shape} does not fit the size of the file")
    return found


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _from_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        name = _name(path, archive.namelist())
        size = archive.getinfo(name).file_size
        with archive.open(name) as file:  # the header first: NumPy makes room for any shape
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        _check_kind(path, dtype, shape)
        if size != expected or size > _DEFLATE * path.stat().st_size:
            raise ValueError(f"{shape} does not fit the size of the file")
        with archive.open(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _check_kind(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind != "f" or len(shape) != 2 or not shape[1]:
        raise BctError(
            f"{path} holds {dtype} {shape}, not floats (images, D)",
            "store one embedding per image, as floats",
        )


def _name(path: Path, files: list[str]) -> str:
    names = [file.removesuffix(".npy") for file in files]
    if len(names) == 1:
        return files[0]
    if "embeddings" in names:
        return files[names.index("embeddings")]
    raise BctError(
        f"{path} holds {len(names)} arrays ({', '.join(names[:5])})",
        'store one array, or call the right one "embeddings"',
    )


def is_stored(path: str | Path) -> bool:
    """Whether a "model" is a file of embeddings."""
    return Path(path).suffix in (".npy", ".npz")
