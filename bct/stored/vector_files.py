"""Vectors in NumPy files, whoever wrote them: embeddings, side information, a number per row.

One set of rules for all: floats, of the shape that is asked for, no pickled objects, no header that
claims more than the file holds. A .npy is memory-mapped. A manifest beside it (see
bct/stored/artefacts.py) has to fit.
"""

import json
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError
from bct.files import atomic
from bct.stored.artefacts import manifest_path, open_artefact

_BLOCK = 1 << 16  # rows looked at together: a memory-mapped file is never whole in memory
_DEFLATE = 1040  # how many times its size deflated data can have


def open_vectors(
    path: str | Path, rows: int | None = None, column: bool = False, finite: bool = True
) -> tuple[np.ndarray, dict[str, Any]]:
    """Opens stored vectors, one per row.

    Args:
        path: a .npy file, or a .npz with one array or one that is called "embeddings".
        rows: n, how many there have to be; None: any number.
        column: there is a number per row, not a vector.
        finite: read all and refuse NaN and inf; False: the caller looks at each row it uses.

    Returns:
        (n, D), D > 0, or a column (n,), of the file's own float type; a .npy is memory-mapped,
        read-only. And its manifest, {} if it has none.

    Raises:
        BctError: no such file or none of these, another shape or type, values not finite, or a
            manifest that was written for another array.
    """
    path, manifest = Path(path), {}
    if not path.is_file():
        raise BctError(f"embeddings {path} do not exist", "check the path")
    if _has_manifest(path):
        found, manifest = open_artefact(path)
    else:
        with _readable(path, "embeddings"):
            found = _from_archive(path) if _is_archive(path) else _mapped(path)
    found = _of_shape(path, found, column)
    if rows is not None and len(found) != rows:
        raise BctError(
            f"{path} has {len(found)} rows for {rows} images",
            "store one row for each image, in their order",
        )
    if finite and (row := first_not_finite(found)) is not None:
        raise BctError(f"{path}: row {row} is not finite", "compute that item's vector again")
    return found, manifest


def first_not_finite(vectors: np.ndarray) -> int | None:
    """The first row with NaN or inf in it, None if there is none; in blocks."""
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            return start + int(finite.argmin())
    return None


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz. Raises BctError for any other file, and for pickled objects."""
    path = Path(path)
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path")
    with _readable(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return {name.removesuffix(".npy"): _member(path, archive, name) for name in names}


def is_stored(path: str | Path) -> bool:
    """Whether a "model" is a file of embeddings."""
    return Path(path).suffix in (".npy", ".npz")


def _has_manifest(path: Path) -> bool:
    """Whether the .json beside a .npy is a manifest; it may be a model.json as well."""
    beside = manifest_path(path)
    if path.suffix != ".npy" or not beside.is_file():
        return False
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True  # damaged: open_artefact says so
    return isinstance(said, dict) and "rows" in said and "dtype" in said


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():  # of odd headers and shapes, which are checked here
            warnings.simplefilter("ignore")
            yield
    except BctError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        reason = " ".join(str(error).split())[:120]
        raise BctError(
            f"{path} can't be read as {kind} ({type(error).__name__}: {reason})",
            "write it with np.save(path, array) or np.savez(path, embeddings=array)",
        ) from None


def _mapped(path: Path) -> np.ndarray:
    found = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    if found.offset + found.nbytes != path.stat().st_size:  # with another shape rows would shift
        raise ValueError(f"{found.shape} does not fit the size of the file")
    return found


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _from_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        return _member(path, archive, _name(path, archive.namelist()))


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:  # the header first: NumPy makes room for any shape
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if size != expected or size > _DEFLATE * path.stat().st_size or min(shape, default=0) < 0:
        raise ValueError(f"{shape} does not fit the size of the file")
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _of_shape(path: Path, found: np.ndarray, column: bool) -> np.ndarray:
    """The array, a column as (n,). Raises BctError if it is none of the kind."""
    if column and found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    shape = "(n,)" if column else "(n, D)"
    fits = found.ndim == 1 if column else found.ndim == 2 and found.shape[1]
    if found.dtype.kind != "f" or not fits:
        raise BctError(
            f"{path} holds {found.dtype} {found.shape}, not floats {shape}",
            "store one row for each item, as floats",
        )
    return found


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


def save_rows(path: Path, rows: np.ndarray) -> None:
    """Writes rows (N, D) as an .npy that open_vectors reads; without a manifest."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
