"""Embeddings that somebody else computed, one row per image, in a NumPy file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from bct.errors import BctError

_BLOCK = 1 << 16  # rows looked at together: a memory-mapped file is never whole in memory


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
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found as arrays:
                found = arrays[_name(path, arrays.files)]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BctError(
            f"{path} can't be read as embeddings ({type(error).__name__}: {str(error)[:120]})",
            "write it with np.save(path, array) or np.savez(path, embeddings=array)",
        ) from None
    found = np.asanyarray(found)  # a .npz gives what is no array as bytes
    if found.dtype.kind != "f" or found.ndim != 2 or not found.shape[1]:
        raise BctError(
            f"{path} holds {found.dtype} {found.shape}, not floats (images, D)",
            "store one embedding per image, as floats",
        )
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


def _name(path: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if "embeddings" in names:
        return "embeddings"
    raise BctError(
        f"{path} holds {len(names)} arrays ({', '.join(names[:5])})",
        'store one array, or call the right one "embeddings"',
    )


def is_stored(path: str | Path) -> bool:
    """Whether a "model" is a file of embeddings."""
    return Path(path).suffix in (".npy", ".npz")
