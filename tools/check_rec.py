"""Checks a whole record file: every record, its index, its labels and its images.

    python tools/check_rec.py dataset/mine/train.rec

Prints what the file holds, and the first problems with key and offset; exit code 1 if there are
any. With --repair it writes a new index of the whole records, skips the broken stretches and says
what was lost. The record file is never touched; the old index is kept as <name>.idx.bak.
"""

import filecmp
import os
import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.command import Parser, file_path, run_cli, takes
from bct.data.images import decode
from bct.data.labels import label_faults
from bct.data.record_index import can_be_keys, ids_are_keys, no_keys, read_index, repeated
from bct.data.recordio import RecordFile, RecordReader
from bct.errors import BctError
from bct.files import atomic
from bct.keys import whole
from bct.log import progress

_CHUNK = 256  # images that a process decodes at a time


class Records(NamedTuple):
    """The whole records of a file, in its order, arrays (n,).

    offsets int64; ids uint64; labels float32, the first one; lengths int64, of the data;
    counts float32, the second label, NaN where there is none. lost: (offset, end, why) of the
    broken stretches.
    """

    offsets: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    lost: list[tuple[int, int, str]]


class Problem(NamedTuple):
    """key and offset are None where a problem has none."""

    key: int | None
    offset: int | None
    what: str

    def __str__(self) -> str:
        where = [f"key {self.key}"] * (self.key is not None)
        where += [f"offset {self.offset}"] * (self.offset is not None)
        return f"{', '.join(where)}: {self.what}" if where else self.what


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("rec", type=file_path, help="a .rec file")
    parser.add_argument("--no-decode", action="store_true", help="do not look into the images")
    parser.add_argument(
        "-j",
        type=takes(whole(1, least=1, most=1024)),
        default=os.cpu_count(),
        help="processes that decode",
    )
    parser.add_argument(
        "--max-problems", type=takes(whole(20)), default=20, help="problems to list"
    )
    parser.add_argument("--repair", action="store_true", help="write a new index")
    args = parser.parse_args()
    file = RecordFile(args.rec)
    records = read_records(file)
    keys, problems = check_index(file, records)
    problems += check_labels(records, keys)
    if not args.no_decode:
        problems += check_images(file, records, keys, args.j)
    print_summary(file, records, keys, problems, args.max_problems)
    if args.repair:
        repair(file, records)
    if problems:
        sys.exit(1)


def read_records(file: RecordFile) -> Records:
    """Walks the file from its first to its last byte."""
    columns, lost = [array(kind) for kind in "qQfqf"], []
    with progress((), file.path.name, file.size, "B") as bar:
        bar.unit_scale = True
        for offset, end, wrong in file.stretches():
            if wrong:
                lost.append((offset, end, wrong))
            else:
                header, data = file.read_at(offset)
                label = np.ravel(header.label)
                count = label[1] if len(label) > 1 else np.nan
                row = offset, header.id, label[0], len(data), count
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
            bar.update(end - offset)
    if not columns[0]:
        raise BctError(f"{file.path} holds no whole record", "copy or download the file again")
    return Records(*map(np.array, columns), lost)


def check_index(file: RecordFile, records: Records) -> tuple[np.ndarray, list[Problem]]:
    """Compares the index with the records.

    Returns:
        Each record's key, int64 (n,), -1 where the index has none; without a usable index the ids,
        or the positions. And the problems, those of the records themselves first.
    """
    problems = [
        Problem(None, offset, f"{end - offset} bytes are broken ({why})")
        for offset, end, why in records.lost
    ]
    try:
        keys, offsets = read_index(file.path.with_suffix(".idx"))
    except FileNotFoundError:
        return _keys_without_index(records), problems
    except BctError as error:
        return _keys_without_index(records), [*problems, Problem(None, None, error.what)]
    for at in np.flatnonzero(repeated(keys)):
        problems.append(Problem(keys[at], offsets[at], "the index has this key more than once"))
    for at in np.flatnonzero(~np.isin(offsets, records.offsets)):
        problems.append(Problem(keys[at], offsets[at], "no whole record starts there"))
    for at in np.flatnonzero(repeated(offsets)):
        problems.append(Problem(keys[at], offsets[at], "the index has this offset more than once"))
    found = keys_by_offset(records, keys, offsets)
    for offset, id in zip(*_chosen(found < 0, records.offsets, records.ids), strict=True):
        problems.append(Problem(None, offset, f"the index has no entry for this record, id {id}"))
    known = found >= 0
    if can_be_keys(records.ids) and ids_are_keys(records.ids[known], found[known]):
        wrong = known & (records.ids != found.astype(np.uint64))
        for key, offset, id in zip(
            *_chosen(wrong, found, records.offsets, records.ids), strict=True
        ):
            problems.append(Problem(key, offset, f"the record there says that its key is {id}"))
    return found, problems


def keys_by_offset(records: Records, keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The index's key of each record, int64 (n,), -1 where it has none."""
    order = np.argsort(offsets, kind="stable")
    at = np.minimum(np.searchsorted(offsets, records.offsets, sorter=order), len(offsets) - 1)
    return np.where(offsets[order[at]] == records.offsets, keys[order[at]], -1)


def _keys_without_index(records: Records) -> np.ndarray:
    usable = can_be_keys(records.ids)
    return records.ids.astype(np.int64) if usable else np.arange(len(records.ids))


def _chosen(mask: np.ndarray, *columns: np.ndarray) -> tuple[list, ...]:
    return tuple(column[mask].tolist() for column in columns)


def images_of(records: Records, keys: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Which records are images, bool (n,), and the header record's position if there is one."""
    header = np.flatnonzero((keys == 0) & (records.lengths == 0) & ~np.isnan(records.counts))
    if not len(header):
        return records.lengths > 0, None
    return (keys != 0) & (records.lengths > 0), int(header[0])


def check_labels(records: Records, keys: np.ndarray) -> list[Problem]:
    """Labels have to be 0 ... C - 1 without gaps, and the header's counts those of the images."""
    problems = []
    images, header = images_of(records, keys)
    if header is None and not images.all():
        at = np.argmin(images)
        what = f"one of {(~images).sum()} records without data, and there is no header record 0"
        problems.append(Problem(int(keys[at]), int(records.offsets[at]), what))
    labels = records.labels
    chosen = np.flatnonzero(images)
    faults = label_faults(labels[images])
    strange = chosen[faults.strange]
    for key, offset, label in zip(*_chosen(strange, keys, records.offsets, labels), strict=True):
        problems.append(Problem(key, offset, f"label {label} is not 0, 1, 2, ..."))
    classes = faults.classes
    if classes > len(chosen):
        at = chosen[faults.largest]
        what = f"label {classes - 1}, but there are {len(chosen)} images"
        problems.append(Problem(int(keys[at]), int(records.offsets[at]), what))
    if faults.unused:
        what = (
            f"{faults.unused} of the labels 0 ... {classes - 1} have no image, e.g. "
            f"{faults.first_unused}"
        )
        problems.append(Problem(None, None, what))
    if header is None:
        return problems
    offset = int(records.offsets[header])
    found = int(images.sum())
    promised, second = labels[header], records.counts[header]  # float32, exact up to 2^24
    if promised != np.float32(found + 1):
        what = f"the header promises {promised - 1:.0f} images, there are {found}"
        problems.append(Problem(0, offset, what))
    if second not in (np.float32(classes), np.float32(promised + classes)):
        what = f"the header's second number, {second:.0f}, does not fit {classes} classes"
        problems.append(Problem(0, offset, what))
    missing = np.setdiff1d(np.arange(1, found + 1), keys[images])
    if len(missing):
        what = f"{len(missing)} keys from 1 on have no image"
        problems.append(Problem(int(missing[0]), None, what))
    return problems


def check_images(
    file: RecordFile, records: Records, keys: np.ndarray, processes: int
) -> list[Problem]:
    """Every image has to decode, to the size of most."""
    chosen = np.flatnonzero(images_of(records, keys)[0])
    chunks = np.array_split(chosen, max(1, len(chosen) // _CHUNK))
    results: list[tuple[int, int] | str] = []
    decoding = _decoded(file, [records.offsets[chunk].tolist() for chunk in chunks], processes)
    with progress((), "images", len(chosen), "img") as bar:
        for chunk in decoding:
            results += chunk
            bar.update(len(chunk))
    sizes = Counter(result for result in results if not isinstance(result, str))
    usual = max(sizes, key=sizes.get) if sizes else None
    problems = []
    for at, result in zip(chosen, results, strict=True):
        if result != usual:
            broken = isinstance(result, str)
            what = result if broken else f"{_size(result)}, but most images are {_size(usual)}"
            problems.append(Problem(int(keys[at]), int(records.offsets[at]), f"image: {what}"))
    return problems


def _decoded(
    file: RecordFile, chunks: list[list[int]], processes: int
) -> Iterator[list[tuple[int, int] | str]]:
    if processes == 1:
        yield from map(partial(_decode, file), chunks)
        return
    try:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(partial(_decode, file), chunks)
    except BrokenProcessPool:
        raise BctError(
            f"{file.path}: a process died while it decoded images", "use fewer processes, -j 1"
        ) from None


def _decode(file: RecordFile, offsets: list[int]) -> list[tuple[int, int] | str]:
    """(width, height) of the image in each record, or why there is none."""
    results: list[tuple[int, int] | str] = []
    for offset in offsets:
        try:
            height, width, _ = decode(file.read_at(offset)[1]).shape
            results.append((width, height))
        except ValueError as error:
            results.append(str(error))
    return results


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def print_summary(
    file: RecordFile, records: Records, keys: np.ndarray, problems: list[Problem], limit: int
) -> None:
    images, header = images_of(records, keys)
    rows = (
        ("size", f"{file.size:,} bytes"),
        ("records", f"{len(keys):,} whole, {len(records.lost):,} broken stretches"),
        ("header record", "none" if header is None else f"offset {records.offsets[header]}"),
        ("images", f"{images.sum():,}"),
        ("labels", f"{len(np.unique(records.labels[images])):,}"),
        ("problems", f"{len(problems):,}" if problems else "none"),
    )
    print(f"{file.path}\n" + "\n".join(f"  {name:<14} {value}" for name, value in rows))
    for problem in problems[:limit]:
        print(f"  {problem}")
    if len(problems) > limit:
        print(f"  ... and {len(problems) - limit:,} more (--max-problems)")


def repair(file: RecordFile, records: Records) -> None:
    """Writes a new index of the whole records. The old one becomes <name>.idx.bak.

    Raises BctError: that file exists, the keys can't be known, or the reader refuses the result.
    """
    path = file.path.with_suffix(".idx")
    backup = path.with_name(path.name + ".bak")
    if backup.exists() and not _same(path, backup):  # of a killed repair
        raise BctError(f"{backup} exists already", "move it away, then repair again")
    keys = new_keys(file, records)
    kept = keys >= 0
    with atomic(path) as temporary:
        rows = zip(keys[kept].tolist(), records.offsets[kept].tolist(), strict=True)
        temporary.write_text("".join(f"{key}\t{offset}\n" for key, offset in rows), "ascii")
        RecordReader(file.path, temporary)
        if path.is_file():
            with atomic(backup) as copy:
                shutil.copyfile(path, copy)
    lost = sum(end - offset for offset, end, _ in records.lost)
    broken = f"{len(records.lost):,} broken stretches, {lost:,} bytes"
    print(f"{path}: {kept.sum():,} records; lost: {broken}")
    for offset in records.offsets[~kept].tolist():
        print(f"  offset {offset}: left out, its key is not known")


def _same(path: Path, backup: Path) -> bool:
    return path.is_file() and filecmp.cmp(path, backup, shallow=False)


def new_keys(file: RecordFile, records: Records) -> np.ndarray:
    """A key for each record, int64 (n,), -1 where there is none to be had.

    The ids, if they repeat the keys of the old index or there is none; of records with the same id
    the one that the old index calls so, while others keep the old index's keys where these are
    free. Otherwise the old index's keys, otherwise the positions.
    """
    ids = records.ids.astype(np.int64)
    try:
        old = keys_by_offset(records, *read_index(file.path.with_suffix(".idx")))
    except (FileNotFoundError, BctError):
        old = None
    known = np.zeros(len(ids), bool) if old is None else old >= 0
    if can_be_keys(records.ids) and (
        not known.any() or ids_are_keys(records.ids[known], old[known])
    ):
        if old is None:
            return np.where(no_keys(records.ids), -1, ids)
        agree = known & (ids == old)
        return np.where(no_keys(records.ids) & ~agree, np.where(np.isin(old, ids), -1, old), ids)
    if known.any():
        return np.where(repeated(old), -1, old)
    if records.lost:
        raise BctError(
            f"{file.path}: records are broken, and their ids do not say what their keys were",
            "copy the .idx again, then repair",
        )
    return np.arange(len(ids))


if __name__ == "__main__":
    run_cli(main)
