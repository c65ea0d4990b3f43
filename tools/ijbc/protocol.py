"""The files of IJB-B and IJB-C: which images, templates, pairs and galleries there are.

Under <root>/IJBC (or IJBB, with prefix ijbb and galleries S1, S2):

    loose_crop/*.jpg
    meta/ijbc_name_5pts_score.txt          name x1 y1 ... x5 y5 score      one row per image
    meta/ijbc_face_tid_mid.txt             name template media             the same rows
    meta/ijbc_template_pair_label.txt      template1 template2 label       1:1
    meta/ijbc_1N_gallery_G1.csv, _G2.csv   TEMPLATE_ID,SUBJECT_ID,...      1:N, with a header row
    meta/ijbc_1N_probe_mixed.csv
"""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bct.errors import BctError
from bct.files import sha256

GALLERIES = {"IJBC": ("G1", "G2"), "IJBB": ("S1", "S2")}
_INTEGER = re.compile(rb"-?[0-9]{1,18}")
_FLOAT = re.compile(rb"-?[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?")  # float() would take 1_000 and nan
_LARGEST = float(np.finfo(np.float32).max)


@dataclass
class Protocol:
    """Images in meta row order, and the 1:1 pairs.

    names: N file names. landmarks float32 (N, 5, 2). detector float32 (N,), detection scores.
    templates, medias int64 (N,). first, second int64 (P,): template ids, enrolment and probe side.
    genuine bool (P,).
    """

    root: Path
    subset: str
    names: list[str]
    landmarks: np.ndarray
    detector: np.ndarray
    templates: np.ndarray
    medias: np.ndarray
    first: np.ndarray
    second: np.ndarray
    genuine: np.ndarray

    def image(self, index: int) -> Path:
        """An image's file. Raises BctError if links lead from loose_crop to outside of it."""
        folder = self.root / "loose_crop"
        file = folder / self.names[index]
        if not os.path.realpath(file).startswith(self._crops + os.sep):
            boxes = self.root / "meta" / f"{self.subset.lower()}_name_5pts_score.txt"
            raise _bad_row(boxes, index + 1, f"{self.names[index]} is a link out of {folder}")
        return file

    @cached_property
    def _crops(self) -> str:
        return os.path.realpath(self.root / "loose_crop")  # itself it may well be a link

    @cached_property
    def fingerprint(self) -> str:
        """Of what embeddings depend on: names, landmarks and 256 sampled files' sizes."""
        sample = np.unique(np.linspace(0, len(self.names) - 1, 256).astype(np.int64))
        sizes = [str(_stat(self.image(i)).st_size) for i in sample]
        return sha256(*self.names, self.landmarks.tobytes(), *sizes)


@dataclass
class Gallery:
    """Templates of a gallery or probe file and whose they are, int64 (K,) each."""

    name: str
    templates: np.ndarray
    subjects: np.ndarray


def read_protocol(root: str | Path, subset: str = "IJBC") -> Protocol:
    """Reads the meta files. `root` holds the folder IJBC, or is that folder.

    Raises BctError: a missing file or column, what is no number, an image outside of loose_crop,
    rows of the two image files that do not match, a pair that names an unknown template.
    """
    folder = _folder(root, subset)
    prefix = subset.lower()
    boxes = folder / "meta" / f"{prefix}_name_5pts_score.txt"
    media = folder / "meta" / f"{prefix}_face_tid_mid.txt"
    names, numbers = _named_rows(boxes, 11, _finite)
    names_again, ids = _named_rows(media, 2, _integer)
    if len(names) != len(names_again):
        raise BctError(
            f"{media.name} has {len(names_again)} rows, {boxes.name} has {len(names)}",
            f"both describe the same images, row by row: restore {folder / 'meta'}",
        )
    for row, (a, b) in enumerate(zip(names, names_again, strict=True), 1):
        if a != b:
            raise BctError(
                f"row {row} is {a} in {boxes.name} but {b} in {media.name}",
                f"both describe the same images, row by row: restore {folder / 'meta'}",
            )
    pairs_file = folder / "meta" / f"{prefix}_template_pair_label.txt"
    pairs = _table(pairs_file, columns=(0, 1, 2), delimiter=None)
    if not np.isin(pairs[:, 2], (0, 1)).all():
        row = int(np.argmin(np.isin(pairs[:, 2], (0, 1))))
        raise _bad_row(pairs_file, row + 1, f"label {pairs[row, 2]} is neither 0 nor 1")
    templates, medias = ids.T.copy()
    unknown = np.setdiff1d(pairs[:, :2], templates)
    if len(unknown):
        raise BctError(
            f"{pairs_file.name} names template {unknown[0]}, which {media.name} does not have",
            f"restore {folder / 'meta'}",
        )
    return Protocol(
        folder,
        subset,
        names,
        numbers[:, :10].reshape(-1, 5, 2).astype(np.float32),
        numbers[:, 10].astype(np.float32),
        templates,
        medias,
        pairs[:, 0],
        pairs[:, 1],
        pairs[:, 2] == 1,
    )


def read_galleries(protocol: Protocol) -> tuple[list[Gallery], Gallery]:
    """The two galleries and the mixed probes; a probe may be of a subject in neither.

    Raises BctError: a missing file, a template without images or with two subjects, a subject with
    two templates in one gallery or one in each.
    """
    files = [f"gallery_{g}" for g in GALLERIES[protocol.subset]] + ["probe_mixed"]
    read = []
    for kind in files:
        file = protocol.root / "meta" / f"{protocol.subset.lower()}_1N_{kind}.csv"
        table = _table(file, columns=(0, 1), delimiter=",", skip=1)
        templates, at, of_row = np.unique(  # a row per image
            table[:, 0], return_index=True, return_inverse=True
        )
        differing = table[:, 1] != table[at, 1][of_row]
        if differing.any():
            raise BctError(
                f"{file.name} gives template {table[np.argmax(differing), 0]} to two subjects",
                f"restore {protocol.root / 'meta'}",
            )
        unknown = np.setdiff1d(templates, protocol.templates)
        if len(unknown):
            raise BctError(
                f"{file.name} names template {unknown[0]}, which has no image",
                f"restore {protocol.root / 'meta'}",
            )
        gallery = Gallery(kind, templates, table[at, 1])
        if kind != "probe_mixed" and len(np.unique(gallery.subjects)) < len(templates):
            subjects, counts = np.unique(gallery.subjects, return_counts=True)
            raise BctError(
                f"{file.name} has two templates of subject {subjects[counts > 1][0]}",
                "a gallery holds one template per subject",
            )
        read.append(gallery)
    *galleries, probes = read
    both = np.intersect1d(*(gallery.subjects for gallery in galleries))
    if len(both):
        raise BctError(
            f"subject {both[0]} is in {galleries[0].name} and in {galleries[1].name}",
            "galleries share no subject, so that a probe is mated in one of them at most",
        )
    return galleries, probes


def _folder(root: str | Path, subset: str) -> Path:
    if subset not in GALLERIES:
        raise BctError(f"there is no subset {subset!r}", f"choose from {', '.join(GALLERIES)}")
    for folder in (Path(root) / subset, Path(root)):
        if (folder / "meta").is_dir():
            return folder
    raise BctError(f"{root} holds no {subset}/meta", f"give -d the folder that contains {subset}/")


def _named_rows(
    file: Path, columns: int, number_of: Callable[[bytes], float]
) -> tuple[list[str], np.ndarray]:
    """Names of images and the `columns` numbers behind them, (N, columns)."""
    names, rows = [], []
    with _open(file) as lines:
        for line_number, line in enumerate(lines, 1):
            fields = line.split()
            if len(fields) != columns + 1:
                why = f"{len(fields)} columns instead of {columns + 1}"
                raise _bad_row(file, line_number, why)
            try:
                names.append(_inside(fields[0]))
                rows.append([number_of(field) for field in fields[1:]])
            except ValueError as error:
                raise _bad_row(file, line_number, str(error)) from None
    if not rows:
        raise BctError(f"{file} is empty", "restore the file")
    return names, np.array(rows)


def _inside(name: bytes) -> str:
    """An image's name, which may not lead out of its folder."""
    text = name.decode("utf-8", "backslashreplace")
    if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name:
        raise ValueError(f"{text!r} is not a file of loose_crop")
    if b"\\" not in name and "\\" in text:
        raise ValueError(f"{text!r} is not UTF-8")
    return text


def _finite(field: bytes) -> float:
    if not _FLOAT.fullmatch(field) or not abs(float(field)) < _LARGEST:
        raise ValueError(f"{_shown(field)} is not a number")
    return float(field)


def _integer(field: bytes) -> int:
    if not _INTEGER.fullmatch(field):
        raise ValueError(f"{_shown(field)} is not an integer")
    return int(field)


def _shown(field: bytes) -> str:
    return repr(field[:20].decode("utf-8", "backslashreplace"))


def _table(
    file: Path, columns: tuple[int, ...], delimiter: str | None, skip: int = 0
) -> np.ndarray:
    """int64 (rows, columns)."""
    with _open(file) as lines:
        first = lines.readline().split(b"," if delimiter else None)
    if skip and first and _INTEGER.fullmatch(first[0].strip()):
        raise _bad_row(file, 1, "it is not the row of the columns' names")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty file is refused below
        warnings.simplefilter("error", DeprecationWarning)  # 1.5 in the place of an integer
        try:
            table = np.loadtxt(
                file,
                np.int64,
                comments=None,
                delimiter=delimiter,
                skiprows=skip,
                usecols=columns,
                ndmin=2,
                encoding="utf-8",
            )
        except (ValueError, IndexError, OverflowError, DeprecationWarning) as error:
            reason = " ".join(str(error).split())[:120]
            raise BctError(f"{file} has a bad row: {reason}", "restore the file") from None
    if len(table) == 0:
        raise BctError(f"{file} is empty", "restore the file")
    return table


def _open(file: Path) -> BinaryIO:
    if not file.is_file():
        raise BctError(f"{file} does not exist", "the protocol needs it: restore the meta folder")
    return open(file, "rb")


def _bad_row(file: Path, number: int, why: str) -> BctError:
    return BctError(f"{file}, line {number}: {why}", "restore the file")


def _stat(file: Path):
    if not file.is_file():
        raise BctError(f"{file} does not exist", "the meta files list it: restore loose_crop/")
    return file.stat()
