"""A gallery: stored vectors with ids, of one or several model versions.

A folder holds it: gallery.json (format, version, a fingerprint per model version, names of the
files), ids-*.npy (N,), version-*.npy (N,) and per model version vectors-*.npy (n_v, W_v), float32:
the rows of that version, in the gallery's order. The vectors are memory-mapped. gallery.json is
written last and names new files, so whatever a kill leaves is the gallery from before.
"""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bct.errors import BctError
from bct.files import atomic, read_json, write_json
from bct.rows import BLOCK, first_not_finite
from bct.stored.artefacts import manifest_path
from bct.stored.fingerprint import Fingerprint, require_format
from bct.stored.names import read_names
from bct.stored.vector_files import open_vectors

_FORMAT, _VERSION = "bct-gallery", 1
_HEAD = {"format": _FORMAT, "version": _VERSION}
_OURS = re.compile(r"(?:ids|version|vectors)-[0-9a-f]{8}(?:-\d+)?\.npy")


class Gallery(NamedTuple):
    """N items. Made by Gallery.of, Gallery.load or `renewed`.

    ids: int64 or str (N,), each once. version: int64 (N,), whose vector a row holds.
    vectors: per version float (n_v, W_v); place: int64 (N,), which row of its version's array.
    fingerprints: per version.
    """

    ids: np.ndarray
    version: np.ndarray
    place: np.ndarray
    vectors: tuple[np.ndarray, ...]
    fingerprints: tuple[Fingerprint, ...]

    @classmethod
    def of(
        cls, ids: Sequence | np.ndarray, vectors: np.ndarray, fingerprint: Fingerprint
    ) -> "Gallery":
        """A gallery of one version.

        Args:
            ids: N integers or strings; vectors: float (N, W), not copied.

        Raises:
            BctError: an id that occurs twice or is neither; vectors of another number or width, or
                a row that is not finite.
        """
        ids, vectors = np.asarray(ids), np.asanyarray(vectors)
        _check_ids(ids)
        _check(vectors, ids, fingerprint)
        zeros, rows = np.zeros(len(ids), np.int64), np.arange(len(ids))
        return cls(ids, zeros, rows, (vectors,), (fingerprint,))

    def renewed(self, rows: np.ndarray, vectors: np.ndarray, fingerprint: Fingerprint) -> "Gallery":
        """A gallery whose rows, int (n,), hold these vectors, float (n, W), of a newer version.

        With the fingerprint of a version that it has, the rows join that version. This gallery
        stays as it is; nothing is copied but the vectors of a version that is joined.

        Raises:
            BctError: a row that does not exist or is named twice; vectors as in `of`.
        """
        rows = np.asarray(rows)
        inside = rows.dtype.kind in "iu" and ((rows >= 0) & (rows < len(self.ids))).all()
        if not inside or len(np.unique(rows)) < len(rows):
            raise BctError(
                f"the rows to renew are no different rows of a gallery of {len(self.ids)}",
                "name each by its number, from 0, and once",
            )
        _check(vectors, self.ids[rows], fingerprint)
        arrays, known = list(self.vectors), list(self.fingerprints)
        if fingerprint not in known:
            known.append(fingerprint)
            arrays.append(vectors[:0])
        index = known.index(fingerprint)
        first = len(arrays[index])
        arrays[index] = np.concatenate([arrays[index], vectors]) if first else vectors
        version, place = self.version.copy(), self.place.copy()
        version[rows], place[rows] = index, first + np.arange(len(rows))
        made = {"version": version, "place": place, "vectors": tuple(arrays)}
        return self._replace(**made, fingerprints=tuple(known))

    def rows_of(self, version: int) -> np.ndarray:
        """Which rows hold a version, int64 (n,), ascending."""
        return np.flatnonzero(self.version == version)

    def vectors_of(self, version: int) -> np.ndarray:
        """The vectors of rows_of(version), float (n, W); mapped ones are not copied."""
        place, vectors = self.place[self.rows_of(version)], self.vectors[version]
        whole = len(place) == len(vectors) and (place == np.arange(len(place))).all()
        return vectors if whole else vectors[place]

    def save(self, folder: str | Path) -> None:
        """Writes the folder, one writer at a time; versions that no row holds are left out.

        What the folder's gallery.json names is replaced, and nothing else is removed. Raises
        BctError if that file is not ours.
        """
        folder, token = Path(folder), secrets.token_hex(4)
        used, version = np.unique(self.version, return_inverse=True)
        names = {"ids": f"ids-{token}.npy", "version": f"version-{token}.npy"}
        vectors = [f"vectors-{token}-{number}.npy" for number in range(len(used))]
        before = _record(folder)
        # noted first: a later save then knows what a kill of this one has left
        noted = [*before.get("pending", []), *names.values(), *vectors]
        write_json(folder / "gallery.json", {**_HEAD, **before, "pending": noted})
        for name, array in zip(names.values(), (self.ids, version), strict=True):
            with _new_array(folder / name, array.dtype, array.shape) as out:
                out[:] = array
        versions = []
        for name, index in zip(vectors, used.tolist(), strict=True):
            source, place = self.vectors[index], self.place[self.rows_of(index)]
            with _new_array(folder / name, np.float32, (len(place), source.shape[1])) as out:
                for start in range(0, len(place), BLOCK):
                    out[start : start + BLOCK] = source[place[start : start + BLOCK]]
            versions.append({"vectors": name, **self.fingerprints[index].entries()})
        write_json(folder / "gallery.json", {**_HEAD, "files": names, "versions": versions})
        for name in _named(before):
            if token not in name:
                (folder / name).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> "Gallery":
        """Opens what save wrote, or the rows of tools/embed.py, out.npy, whose ids are the images'
        names. BctError for anything else, or a format that is too new."""
        if Path(folder).suffix == ".npy":
            return _of_embeddings(Path(folder))
        path = Path(folder) / "gallery.json"
        said = read_json(path)
        require_format(said, path, _FORMAT, _VERSION)
        try:
            ids, version = (_opened(path.parent / said["files"][k]) for k in ("ids", "version"))
            _check_ids(ids)
            if ids.shape != version.shape or version.dtype.kind != "i":
                raise ValueError("its ids and versions do not fit each other")
            prints = tuple(Fingerprint.of_entries(entry, path) for entry in said["versions"])
            place, arrays = np.full(len(ids), -1), []
            for number, entry in enumerate(said["versions"]):
                rows = np.flatnonzero(version == number)
                place[rows] = np.arange(len(rows))
                arrays.append(open_vectors(path.parent / entry["vectors"], len(rows))[0])
            widths = [array.shape[1] for array in arrays] == [known.width for known in prints]
            if not widths or (place < 0).any():
                raise ValueError("its files do not fit each other")
        except (KeyError, TypeError, ValueError, OSError, EOFError, OverflowError) as error:
            raise BctError(
                f"{path} names no whole gallery ({type(error).__name__}: {error})",
                "load it again if it was just replaced, or else save it again",
            ) from None
        return cls(ids, version, place, tuple(arrays), prints)


def _of_embeddings(path: Path) -> Gallery:
    vectors, manifest = open_vectors(path)
    if "fingerprint" not in manifest:
        raise BctError(
            f"{path} has no manifest that says which model made it",
            "embed with tools/embed.py, or make a gallery of its rows: Gallery.of",
        )
    names = read_names(path.with_name(f"{path.stem}_names.txt"))
    fingerprint = Fingerprint.of_entries(manifest["fingerprint"], manifest_path(path))
    if len(names) != len(vectors):
        raise BctError(
            f"{path} has {len(vectors)} rows, {path.stem}_names.txt {len(names)} names",
            "copy both again",
        )
    return Gallery.of([os.fsdecode(name) for name in names], vectors, fingerprint)


def _check_ids(ids: np.ndarray) -> None:
    if ids.dtype.kind not in "iuU" or ids.ndim != 1:
        raise BctError(f"the ids are {ids.dtype} {ids.shape}", "give integers or strings, (N,)")
    known, count = np.unique(ids, return_counts=True)
    if len(known) < len(ids):
        twice = known[count.argmax()].item()
        raise BctError(f"the id {twice!r} occurs {count.max()} times", "name each item once")


def _record(folder: Path) -> dict[str, Any]:
    """What gallery.json says; nothing if there is none. BctError if it is not ours."""
    path = folder / "gallery.json"
    if not path.is_file():
        return {}
    said = read_json(path)
    require_format(said, path, _FORMAT, _VERSION)
    return said


def _named(said: dict[str, Any]) -> list[str]:
    """The files that a gallery.json names and that can be ours."""
    names = [*said.get("files", {}).values(), *said.get("pending", [])]
    names += [entry.get("vectors") for entry in said.get("versions", [])]
    return [name for name in names if isinstance(name, str) and _OURS.fullmatch(name)]


def _opened(path: Path) -> np.ndarray:
    """An array of a .npy, in memory; the header may claim no more than the file holds."""
    return np.array(np.lib.format.open_memmap(path, mode="r"))


@contextmanager
def _new_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    with atomic(path) as temporary:
        yield (array := np.lib.format.open_memmap(temporary, "w+", dtype, shape))
        array.flush()


def _check(vectors: np.ndarray, ids: np.ndarray, fingerprint: Fingerprint) -> None:
    if np.shape(vectors) != (len(ids), fingerprint.width) or vectors.dtype.kind != "f":
        raise BctError(
            f"the vectors are {vectors.dtype} {np.shape(vectors)} for {len(ids)} items of "
            f"{fingerprint.width} dimensions",
            "give one vector of floats per item, of the width that the fingerprint says",
        )
    if (row := first_not_finite(vectors)) is not None:
        raise BctError(
            f"row {row} of the vectors, id {ids[row].item()!r}, is not finite",
            "embed that item again",
        )
