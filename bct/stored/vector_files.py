"""Vectors in NumPy files, whoever wrote them: embeddings, side information, a number per row.

One set of rules for all: floats, of the shape that is asked for, no pickled objects, no header that
claims more than the file holds, no archive that unpacks to many times its size; and the rules of
bct/rows.py for rows that are no embeddings. A .npy is memory-mapped. A manifest beside it (see
bct/stored/artefacts.py) has to fit.
"""

import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError
from bct.files import atomic
from bct.rows import check_rows, refuse_not_finite
from bct.stored.artefacts import manifest_path, open_artefact
from bct.stored.fvecs import open_fvecs

# bytes that an archive may unpack to: of its own, as floats deflate to a half at best, and of any
_UNPACKED, _SMALL = 64, 1 << 24
STORED = (".npy", ".npz", ".fvecs")

Check = Callable[[tuple[int, ...], np.dtype], None]


def open_vectors(
    path: str | Path, rows: int | None = None, column: bool = False, finite: bool = True
) -> tuple[np.ndarray, dict[str, Any]]:
    """Opens stored vectors, one per row.

    Args:
        path: a .npy file, or a .npz with one array or one that is called "embeddings"; or .fvecs.
        rows: n, how many there have to be; None: any number.
        column: there is a number per row, not a vector.
        finite: read all, refuse NaN and inf, and vectors that are all zeros; False: the caller
            looks at each row it uses.

    Returns:
        (n, D), n and D > 0, or a column (n,), of the file's own float type; a .npy or .fvecs
        is memory-mapped, read-only. And its manifest, {} if it has none.

    Raises:
        BctError: no such file or none of these, another shape or type, values not finite, nothing
            but zeros, or a manifest that was written for another array.
    """
    path, manifest = Path(path), {}
    if not path.is_file():
        raise BctError(f"embeddings {path} do not exist", "check the path")

    def check(shape: tuple[int, ...], dtype: np.dtype) -> None:
        _check(path, shape, dtype, rows, column)

    if path.suffix == ".fvecs":
        found = open_fvecs(path)
        check(found.shape, found.dtype)
    elif _has_manifest(path):
        found, manifest = open_artefact(path)
        check(found.shape, found.dtype)
    else:
        with _readable(path, "embeddings"):
            found = _from_archive(path, check) if _is_archive(path) else _mapped(path, check)
    if column:
        found = found.reshape(-1)
        if finite:
            refuse_not_finite(found, str(path))
    elif finite:
        check_rows(found, str(path), alike=False)
    return found, manifest


def open_array(path: Path) -> np.ndarray:
    """The array of a .npy, of any shape and type, memory-mapped. BctError if it can't be read."""
    with _readable(path, "an array"):
        return _mapped(path, lambda shape, dtype: None)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz. Raises BctError for any other file, and for pickled objects."""
    path = Path(path)
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path")
    with _readable(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        _bounded(path, sum(member.file_size for member in archive.infolist()))
        return {name.removesuffix(".npy"): _member(path, archive, name) for name in names}


def is_stored(path: str | Path) -> bool:
    """Whether a "model" is a file of embeddings."""
    return Path(path).suffix in STORED


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


def _mapped(path: Path, check: Check) -> np.ndarray:
    found = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    check(found.shape, found.dtype)
    if found.offset + found.nbytes != path.stat().st_size:  # with another shape rows would shift
        raise ValueError(f"{found.shape} does not fit the size of the file")
    return found


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _from_archive(path: Path, check: Check) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        return _member(path, archive, _name(path, archive.namelist()), check)


def _member(
    path: Path, archive: zipfile.ZipFile, name: str, check: Check | None = None
) -> np.ndarray:
    """An array of an archive. `check` sees what it claims to be before there is room for it."""
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("NumPy does not compress so")  # others' memory the file itself decides
    with archive.open(name) as file:  # the header first: NumPy makes room for any shape
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if member.file_size != expected or min(shape, default=0) < 0 or not dtype.itemsize:
        raise ValueError(f"{shape} does not fit the size of the file")
    if check is not None:
        check(shape, dtype)
    _bounded(path, member.file_size)
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _bounded(path: Path, unpacked: int) -> None:
    """Raises BctError for an archive that takes far more memory than its size."""
    size = path.stat().st_size
    if unpacked > max(_UNPACKED * size, _SMALL):
        raise BctError(
            f"{path} has {size:,} bytes and unpacks to {unpacked:,}: it holds no embeddings",
            "store them with np.save(path, array)",
        )


def _check(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, rows: int | None, column: bool
) -> None:
    """Raises BctError for an array that is none of the kind, or not of so many rows."""
    wanted = "(n,)" if column else "(n, D)"
    fits = len(shape) == 2 and shape[1] > 0
    if column:
        fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if dtype.kind != "f" or not fits:
        raise BctError(
            f"{path} holds {dtype} {shape}, not floats {wanted}",
            "store one row for each item, as floats",
        )
    if rows is not None and shape[0] != rows:
        raise BctError(
            f"{path} has {shape[0]} rows for {rows} images",
            "store one row for each image, in their order",
        )
    if not shape[0]:
        raise BctError(f"{path} has no rows", "store one row for each item")


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
