"""The files of IJB-B and IJB-C: which images, templates, pairs and galleries there are.

Under <root>/IJBC (or IJBB, with prefix ijbb and galleries S1, S2):

    loose_crop/*.jpg
    meta/ijbc_name_5pts_score.txt          name x1 y1 ... x5 y5 score      one row per image
    meta/ijbc_face_tid_mid.txt             name template media             the same rows
    meta/ijbc_template_pair_label.txt      template1 template2 label       1:1
    meta/ijbc_1N_gallery_G1.csv, _G2.csv   TEMPLATE_ID,SUBJECT_ID,...      1:N, with a header row
    meta/ijbc_1N_probe_mixed.csv
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bct.errors import BctError
from bct.files import without_mark
from bct.protocols.protocol import Pairs, Protocol, Side
from bct.protocols.templates import Templates
from tools.ijbc.crops import LooseCrops
from tools.ijbc.left_out import (
    contradicted,
    counting,
    key_of,
    more,
    not_enrolled,
    sharing,
    without_face,
)

GALLERIES = {"IJBC": ("G1", "G2"), "IJBB": ("S1", "S2")}
_INTEGER = re.compile(rb"-?[0-9]{1,18}")
_FLOAT = re.compile(rb"-?[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?")  # float() would take 1_000 and nan
_NOT_FINITE = (b"nan", b"inf", b"infinity")
_LARGEST = float(np.finfo(np.float32).max)


def read_protocol(root: str | Path, subset: str = "IJBC", identification: bool = True) -> Protocol:
    """Reads the meta files. `root` holds the folder IJBC, or is that folder.

    Args:
        identification: read the 1:N files, too. They say whose a template is; one that they lack
            is a subject of its own.

    Images without a face (landmarks that are one point or not finite) count in no template. A pair
    of a template with itself, or of two that share an image, and a probe that is enrolled are left
    out. The protocol's remarks say how many and name the first.

    Raises BctError: a missing file or column, what is no number, a negative score, an image outside
    of loose_crop, rows of the two image files that do not match, a pair that names a template
    without a face or one that is genuine and impostor, pairs of one kind only; see _read_sides.
    """
    folder = _folder(root, subset)
    prefix = subset.lower()
    boxes = folder / "meta" / f"{prefix}_name_5pts_score.txt"
    media = folder / "meta" / f"{prefix}_face_tid_mid.txt"
    names, numbers = _named_rows(boxes, 11, _number)
    names_again, ids = _named_rows(media, 2, _integer)
    _same_names(boxes, names, media, names_again)
    crops = LooseCrops(folder, boxes, names, numbers[:, :10].reshape(-1, 5, 2).astype(np.float32))
    scores = numbers[:, 10].astype(np.float32)
    templates = Templates(ids[:, 0], ids[:, 1], scores, counting(boxes, crops, scores, ids[:, 0]))
    remarks = without_face(boxes, crops)
    shared = sharing(crops, templates)
    probes, galleries, subjects = None, [], None
    file = folder / "meta" / f"{prefix}_template_pair_label.txt"
    pairs = _read_pairs(file, templates, ids[:, 0], shared, remarks)
    if identification:
        *galleries, probes = _read_sides(folder, subset, templates, ids[:, 0])
        sides = (probes, *reversed(galleries))
        lowest = min(0, *(int(side.subjects.min()) for side in sides))
        # strangers: below all subjects, whatever numbers these and the templates have
        subjects = lowest - 1 - (templates.ids - min(0, int(templates.ids[0])))
        for side in sides:
            subjects[side.rows] = side.subjects
        file = folder / "meta" / f"{prefix}_1N_probe_mixed.csv"
        probes = not_enrolled(file, probes, galleries, templates, shared, remarks)
    return Protocol(
        name=subset,
        images=crops,
        templates=templates,
        pairs=pairs,
        probes=probes,
        galleries=galleries,
        subjects=subjects,
        thumbnail=crops.load,
        remarks=remarks,
    )


def _same_names(boxes: Path, names: list[str], media: Path, names_again: list[str]) -> None:
    do = f"both describe the same images, row by row: restore {boxes.parent}"
    if len(names) != len(names_again):
        raise BctError(
            f"{media.name} has {len(names_again)} rows, {boxes.name} has {len(names)}", do
        )
    for row, (a, b) in enumerate(zip(names, names_again, strict=True), 1):
        if a != b:
            raise BctError(f"row {row} is {a} in {boxes.name} but {b} in {media.name}", do)


def _read_pairs(
    file: Path, templates: Templates, every: np.ndarray, shared: np.ndarray, remarks: list[str]
) -> Pairs:
    """The pairs of two templates.

    Args:
        every: ids of all templates, with or without a face. shared: see left_out.sharing. remarks:
            gets one about the pairs that are left out.
    """
    table = integer_table(file, columns=(0, 1, 2), delimiter=None)
    if not np.isin(table[:, 2], (0, 1)).all():
        row = int(np.argmin(np.isin(table[:, 2], (0, 1))))
        raise _bad_row(file, row + 1, f"label {table[row, 2]} is neither 0 nor 1")
    first, second = (_rows(templates, table[:, k], file, every) for k in (0, 1))
    genuine, key = table[:, 2] == 1, key_of(first, second, templates)
    if (at := contradicted(key, genuine)) is not None:
        a, b = table[at, :2]
        raise BctError(
            f"{file}: the pair of templates {a} and {b} is genuine in one line, impostor in "
            "another one",
            "give each pair one label",
        )
    left_out = first == second
    if len(shared):
        left_out |= np.isin(key, shared)
    if left_out.any():
        lines = np.flatnonzero(left_out) + 1
        remarks.append(
            f"{len(lines):,} of {len(table):,} pairs are left out, as both templates are one or "
            f"share an image: {file.name}, line {lines[0]}{more(lines[1:], 'line')}."
        )
        first, second, genuine = (side[~left_out] for side in (first, second, genuine))
    for kind, lacks in (("genuine", not genuine.any()), ("impostor", genuine.all())):
        if lacks:
            raise BctError(
                f"{file} has no {kind} pair of two templates, so TAR at FAR is undefined",
                "give pairs of both kinds",
            )
    return Pairs(first, second, genuine)


def _rows(templates: Templates, ids: np.ndarray, file: Path, every: np.ndarray) -> np.ndarray:
    """Rows of template ids. BctError for one without an image that counts."""
    try:
        return templates.rows(ids)
    except BctError:
        unknown = np.setdiff1d(ids, templates.ids)[0]
    if unknown in every:
        raise BctError(
            f"{file.name} names template {unknown}, which has no image with a face and a score "
            "above 0",
            f"take it out of {file.name}, or detect its faces again",
        )
    raise BctError(
        f"{file.name} names template {unknown}, which has no image", f"restore {file.parent}"
    )


def _read_sides(folder: Path, subset: str, templates: Templates, every: np.ndarray) -> list[Side]:
    """The two galleries and the mixed probes; a probe may be of a subject in neither.

    Raises BctError: a missing file, a template without images or with two subjects, a subject with
    two templates in one gallery or one in each.
    """
    read = []
    for kind in [f"gallery_{g}" for g in GALLERIES[subset]] + ["probe_mixed"]:
        file = folder / "meta" / f"{subset.lower()}_1N_{kind}.csv"
        table = integer_table(file, columns=(0, 1), delimiter=",", skip=1)
        ids, at, of_row = np.unique(  # a row per image
            table[:, 0], return_index=True, return_inverse=True
        )
        differing = table[:, 1] != table[at, 1][of_row]
        if differing.any():
            raise BctError(
                f"{file.name} gives template {table[np.argmax(differing), 0]} to two subjects",
                f"restore {file.parent}",
            )
        side = Side(kind, _rows(templates, ids, file, every), table[at, 1])
        if kind != "probe_mixed" and len(ids) == 1:
            raise BctError(
                f"{file.name} has a single template: no probe can find a wrong one",
                "give a gallery of two subjects or more",
            )
        if kind != "probe_mixed" and len(np.unique(side.subjects)) < len(ids):
            subjects, counts = np.unique(side.subjects, return_counts=True)
            raise BctError(
                f"{file.name} has two templates of subject {subjects[counts > 1][0]}",
                "a gallery holds one template per subject",
            )
        read.append(side)
    a, b, _ = read
    both = np.intersect1d(a.subjects, b.subjects)
    if len(both):
        raise BctError(
            f"subject {both[0]} is in {a.name} and in {b.name}",
            "galleries share no subject, so that a probe is mated in one of them at most",
        )
    return read


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
            fields = (without_mark(file, line) if line_number == 1 else line).split()
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


def _number(field: bytes) -> float:
    """Raises ValueError for what is none; NaN and inf are: so some detectors say "no face"."""
    if field.lower().lstrip(b"+-") in _NOT_FINITE:
        return float("nan")
    if not _FLOAT.fullmatch(field) or not abs(float(field)) < _LARGEST:
        raise ValueError(f"{_shown(field)} is not a number")
    return float(field)


def _integer(field: bytes) -> int:
    if not _INTEGER.fullmatch(field):
        raise ValueError(f"{_shown(field)} is not an integer")
    return int(field)


def _shown(field: bytes) -> str:
    return repr(field[:20].decode("utf-8", "backslashreplace"))


def integer_table(
    file: Path, columns: tuple[int, ...], delimiter: str | None, skip: int = 0
) -> np.ndarray:
    """Columns of whole numbers of a text file: int64 (rows, columns). BctError for a bad row."""
    with _open(file) as lines:
        first = without_mark(file, lines.readline()).split(b"," if delimiter else None)
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
                encoding="utf-8-sig",
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
