"""Google Landmarks v2's files for retrieval, as published and as AdvBCT rewrites them.

    index.csv                       id               the gallery, index/a/b/c/<id>.jpg
    retrieval_solution_v2.1.csv     id,images,Usage  queries, test/a/b/c/<id>.jpg; ids of the index
                                                     with spaces between; Private, Public or Ignored

    gldv2_gallery_list.txt          index/a/b/c/<id>.jpg <row, from 0>
    gldv2_<split>_query_list.txt    test/a/b/c/<id>.jpg <running number>
    gldv2_<split>_query_gt.txt      test/a/b/c/<id>.jpg <running number> <row>,<row>,...

a, b and c are an id's first three characters.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.image_files import as_text, bad_line
from bct.errors import BctError
from bct.files import without_mark
from bct.safe.tensor_files import shown

SPLITS = ("private", "public")
_LEFT_OUT = "ignored"
_COPY = "copy the file again: https://github.com/cvdfoundation/google-landmark"


class Landmarks(NamedTuple):
    """Names of images below the root, the gallery's and the queries', and for each query the rows
    of its positives in the gallery, int64. ignored: how many queries are of no split; None where
    the lists don't say so. path: of the file that says what is positive."""

    path: Path
    gallery: list[bytes]
    queries: list[bytes]
    positive: list[np.ndarray]
    ignored: int | None = None


def read_gldv2(root: str | Path, split: str = "private") -> Landmarks:
    """Reads the csv files in a folder, or AdvBCT's lists if it has no index.csv.

    Raises BctError: no such files, another split, a line that does not parse, ids or rows that
    are not in the gallery, or what is there twice.
    """
    root = Path(root)
    if split not in SPLITS:
        raise BctError(f"GLDv2 has no split {shown(split, 40)!r}", f"give {' or '.join(SPLITS)}")
    index, listed = root / "index.csv", root / "gldv2_gallery_list.txt"
    if index.is_file():
        return _of_csv(index, _solution(root), split)
    if listed.is_file():
        return _of_lists(listed, split)
    raise BctError(
        f"{root} has neither index.csv nor {listed.name}: it is no GLDv2",
        "give the folder with index.csv and retrieval_solution_v2.1.csv",
    )


def _solution(root: Path) -> Path:
    found = sorted(root.glob("retrieval_solution*.csv"))
    published = root / "retrieval_solution_v2.1.csv"
    if published in found:
        return published
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise BctError(
            f"{root} has no retrieval_solution_v2.1.csv (found: {names})",
            "put the solution there, which says what is positive for a query",
        )
    return found[0]


def _of_csv(index: Path, solution: Path, split: str) -> Landmarks:
    ids = [line.partition(b",")[0].strip(b'" ') for _, line in _lines(index, b"id")]
    _check_ids(index, ids)
    gallery, order = _sorted(index, ids)
    every: list[bytes] = []
    queries: list[bytes] = []
    named: list[list[bytes]] = []
    ignored = 0
    for number, line in _lines(solution, b"id,images,usage"):
        fields = line.replace(b'"', b"").split(b",")
        usage = fields[-1].strip().decode("latin1").lower()
        if len(fields) != 3 or usage not in (*SPLITS, _LEFT_OUT):
            form = "<id>,<ids of images>,<Private, Public or Ignored>"
            raise bad_line(solution, number, line, form, _COPY)
        every.append(fields[0].strip())
        if usage == _LEFT_OUT:
            ignored += 1
        elif usage == split:
            queries.append(every[-1])
            images = fields[1].split()
            named.append([] if images == [b"None"] else images)
    _check_ids(solution, every)
    _sorted(solution, every)  # in two splits, or in one and ignored: it would be in doubt
    if not queries:
        raise BctError(f"{solution} has no {split} query", f"give the other split, or {_COPY}")
    positive = _rows(solution, queries, named, gallery, order)
    return Landmarks(
        solution, _names(b"index", ids), _names(b"test", queries), positive, ignored
    )  # fmt: skip


def _rows(
    path: Path,
    queries: Sequence[bytes],
    named: Sequence[Sequence[bytes]],
    gallery: np.ndarray,
    order: np.ndarray,
) -> list[np.ndarray]:
    """Rows of ids in the gallery, whose sorted ids, (G,), and their rows, int64 (G,), are given."""
    wanted = np.array([image for images in named for image in images], bytes)
    at = np.minimum(np.searchsorted(gallery, wanted), len(gallery) - 1)
    unknown = np.flatnonzero(gallery[at] != wanted)
    owner = np.repeat(np.arange(len(named)), [len(images) for images in named])
    if len(unknown):
        first, whose = unknown[0], queries[owner[unknown[0]]]
        raise BctError(
            f"{path}: {len(unknown):,} of its images are not in the index, first "
            f"{shown(as_text(wanted[first]), 40)} of query {shown(as_text(whose), 40)}",
            "give the index and the solution of one version",
        )
    rows = order[at]
    _refuse_twice(path, queries, owner, rows)
    return np.split(rows, np.cumsum([len(images) for images in named])[:-1])


def _refuse_twice(
    path: Path, queries: Sequence[bytes], owner: np.ndarray, rows: np.ndarray
) -> None:
    """Raises BctError for a query that names one image twice."""
    by_query = np.lexsort((rows, owner))
    same = (np.diff(owner[by_query]) == 0) & (np.diff(rows[by_query]) == 0)
    if same.any():
        query = queries[owner[by_query[int(np.argmax(same))]]]
        raise BctError(f"{path}: query {shown(as_text(query), 80)} names an image twice", _COPY)


def _of_lists(listed: Path, split: str) -> Landmarks:
    asked = listed.with_name(f"gldv2_{split}_query_list.txt")
    truth = listed.with_name(f"gldv2_{split}_query_gt.txt")
    gallery: list[bytes] = []
    for number, line in _lines(listed):
        name, row = _fields(listed, number, line, 2)
        if row != b"%d" % len(gallery):
            raise bad_line(listed, number, line, f"<path> {len(gallery)}, its row", _COPY)
        gallery.append(name)
    queries, numbers, positive = [], [], []
    for number, line in _lines(truth):
        name, running, rows = _fields(truth, number, line, 3)
        found = rows.split(b",")
        if not all(row.isdigit() and len(row) < 10 and int(row) < len(gallery) for row in found):
            form = f"<path> <number> <rows of the {len(gallery):,} of the gallery>"
            raise bad_line(truth, number, line, form, _COPY)
        queries.append(name)
        numbers.append(running)
        positive.append(np.array([int(row) for row in found], np.int64))
    also = [tuple(_fields(asked, number, line, 2)) for number, line in _lines(asked)]
    if also != list(zip(queries, numbers, strict=True)):
        raise BctError(f"{asked} and {truth.name} name other queries", "copy both files again")
    for path, names in ((listed, gallery), (truth, queries)):
        _sorted(path, names)
    owner = np.repeat(np.arange(len(positive)), [len(rows) for rows in positive])
    _refuse_twice(truth, queries, owner, np.concatenate(positive))
    return Landmarks(truth, gallery, queries, positive)


def _fields(path: Path, number: int, line: bytes, count: int) -> list[bytes]:
    fields = line.split()
    if len(fields) != count:
        raise bad_line(path, number, line, f"{count} words", _COPY)
    return fields


def _lines(path: Path, header: bytes | None = None) -> Iterator[tuple[int, bytes]]:
    """Numbers and lines that are not empty, without the header, which has to be there. BctError if
    the file is missing or has none."""
    if not path.is_file():
        raise BctError(f"{path} does not exist", _COPY)
    lines = without_mark(path, path.read_bytes()).splitlines()
    start = 0
    if header is not None:
        said = lines[0].replace(b'"', b"").replace(b" ", b"").lower() if lines else b""
        if said != header and not (header == b"id" and said.startswith(b"id,")):
            form = f"its header, {header.decode()}"
            raise bad_line(path, 1, lines[0] if lines else b"", form, _COPY)
        start = 1
    found = False
    for number, line in enumerate(lines[start:], start + 1):
        if line.strip():
            found = True
            yield number, line
    if not found:
        raise BctError(f"{path} names no image", _COPY)


def _check_ids(path: Path, ids: Sequence[bytes]) -> None:
    wrong = next((k for k, name in enumerate(ids) if len(name) < 3 or not name.isalnum()), None)
    if wrong is not None:
        raise BctError(
            f"{path}: {shown(as_text(ids[wrong]), 40)!r} is no id of an image", _COPY
        )  # fmt: skip


def _sorted(path: Path, names: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted names and the row of each. BctError for one that is there twice."""
    array = np.array(names, bytes)
    order = np.argsort(array, kind="stable")
    array = array[order]
    twice = np.flatnonzero(array[1:] == array[:-1])
    if len(twice):
        name = shown(as_text(array[twice[0]]), 80)
        raise BctError(f"{path} has {len(twice):,} images twice, first {name}", _COPY)
    return array, order


def _names(folder: bytes, ids: Sequence[bytes]) -> list[bytes]:
    return [
        b"%s/%c/%c/%c/%s.jpg" % (folder, name[0], name[1], name[2], name) for name in ids
    ]  # fmt: skip
