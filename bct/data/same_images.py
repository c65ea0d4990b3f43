"""Which images of a set are those of another one, or of a list of names; and whether the labels of
both tell the same classes apart."""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.image_set import ImageSet
from bct.errors import BctError, printable
from bct.files import without_mark
from bct.log import progress

_WHICH = "say which image each row is of: --rows, --names or --of"


class Match(NamedTuple):
    """index: int64 (k,), ascending, images of the set. row: int64 (k,), where each is in the other
    one. alone: bool (k,), whether it occurs once in both, so that it can be no other image.
    left: how many of the other one's are in none of the set's places."""

    index: np.ndarray
    row: np.ndarray
    alone: np.ndarray
    left: int = 0


def same_keys(other: np.ndarray, own: np.ndarray) -> Match:
    """Pairs of equal keys, (m,) and (n,) of one type. Of keys that occur several times the first
    belongs to the first, and so on; further ones to the last."""
    _, group = np.unique(np.concatenate((other, own)), return_inverse=True)
    theirs, ours = group[: len(other)], group[len(other) :]
    sizes = group.max(initial=-1) + 1
    count, of_ours = (np.bincount(x, minlength=sizes) for x in (theirs, ours))
    order = np.argsort(theirs, kind="stable")
    first = np.cumsum(count) - count
    by_group = np.argsort(ours, kind="stable")
    number = np.empty(len(ours), np.int64)
    number[by_group] = np.arange(len(ours)) - (np.cumsum(of_ours) - of_ours)[ours[by_group]]
    index = np.flatnonzero(count[ours] > 0)
    groups = ours[index]
    row = order[first[groups] + np.minimum(number[index], count[groups] - 1)]
    left = len(other) - len(np.unique(row))
    return Match(index, row, (count[groups] == 1) & (of_ours[groups] == 1), left)


def by_bytes(other: ImageSet, own: ImageSet) -> Match:
    """The images of `own` whose encoded bytes are in `other`. BctError if there is none."""
    match = same_keys(_digests(other), _digests(own))
    if not len(match.index):
        raise BctError(
            f"no image of {own.path} is in {other.path}, by the bytes of their files",
            "give the set that the features were made from; one that was encoded anew has other "
            "bytes: say with --rows which image each row is of",
        )
    return match


def _digests(images: ImageSet) -> np.ndarray:
    """Two numbers for each image's bytes, (n,)."""
    if not hasattr(images, "payload"):
        raise BctError(
            f"{images.path} has no files of its images to compare",
            "say with --rows which image each row is of",
        )
    out = np.empty((len(images), 2), np.uint64)
    steps: Iterator[int] = progress(range(len(images)), f"reading {images.name}", len(images))
    for index in steps:
        digest = blake2b(images.payload(index)[0], digest_size=16).digest()
        out[index] = np.frombuffer(digest, np.uint64)
    return out.view([("a", np.uint64), ("b", np.uint64)])[:, 0]


def by_names(
    file: Path, rows: int, own: ImageSet, written: Callable[[bytes], bytes] = bytes
) -> Match:
    """The images of a folder or list set that are named in a text file, one name a line, as the set
    names them: relative to its folder. BctError if none is, and for other sets.

    written: how the file may write a name that the set has, see bct.stored.names.line_of.
    """
    names = getattr(own, "names", None)
    if names is None:
        raise BctError(
            f"the images of {own.path} have no names",
            "say with --rows which image each row is of, or with --of which set has them",
        )
    if not file.is_file():
        raise BctError(f"{file} does not exist", "check the path")
    lines = [line.strip() for line in without_mark(file, file.read_bytes()).splitlines()]
    require_rows(rows, len(lines), f"{file} names")
    match = same_keys(np.array(_as_the_set_has_them(lines, names, written), bytes), names)
    if not len(match.index):
        first, ours = (printable(x[0].decode(errors="replace")) for x in (lines, names))
        raise BctError(
            f"no image of {own.path} is named in {file}: it begins with {first[:60]!r}, the set "
            f"with {ours[:60]!r}",
            "write the names as the set has them, one a line for each row",
        )
    return match


def _as_the_set_has_them(
    lines: list[bytes], names: np.ndarray, written: Callable[[bytes], bytes]
) -> list[bytes]:
    known = set(names.tolist())
    odd = {line: name for name in known if (line := written(name)) != name}
    return [line if line in known else odd.get(line, line) for line in lines]


def by_numbers(numbers: np.ndarray, file: Path, rows: int, own: ImageSet) -> Match:
    """The images of `own` with these numbers, one for each row. BctError for others."""
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) != rows:
        raise BctError(
            f"{file} holds {numbers.dtype} {numbers.shape}, not the image of each of {rows} rows",
            "store whole numbers (n,): row i is of the set's image rows[i]",
        )
    numbers = np.asarray(numbers, np.int64)
    outside = (numbers < 0) | (numbers >= len(own))
    if outside.any() or len(np.unique(numbers)) < rows:
        raise BctError(
            f"{file} has a number outside 0..{len(own) - 1}, or one twice",
            "number the set's images from 0; each has one row at most",
        )
    order = np.argsort(numbers)
    return Match(numbers[order], order, np.ones(rows, bool))


def require_rows(rows: int, images: int, what: str, advice: str = _WHICH) -> None:
    """Raises BctError unless there is a row for each of these images."""
    if rows != images:
        raise BctError(
            f"there are {rows} rows of embeddings, and {what} {images} images",
            advice,
        )


def one_to_one(theirs: np.ndarray, ours: np.ndarray, name: str, own: ImageSet) -> np.ndarray:
    """The other numbering's label of each class of the set, -1 where it has none, int64 (C,).

    Args:
        theirs, ours: int64 (k,), labels of the same images. name: whose the first are.

    Raises BctError unless images that share a label in one share it in the other.
    """
    pairs = np.unique(np.stack((ours, theirs), axis=1), axis=0)
    for column, words in enumerate((f"class {{}} of {own.path}", f"class {{}} of {name}")):
        values, counts = np.unique(pairs[:, column], return_counts=True)
        if (counts > 1).any():
            shared = values[np.argmax(counts > 1)]
            two = pairs[pairs[:, column] == shared][:2, 1 - column]
            other = name if column == 0 else own.path
            raise BctError(
                f"the images of {words.format(shared)} are of the classes {two[0]} and {two[1]} of "
                f"{other}: the rows are of other images",
                "give the labels and the rows of this set, in its order, or say with --rows, "
                "--names or --of which image each row is of",
            )
    out = np.full(own.num_classes, -1, np.int64)
    out[pairs[:, 0]] = pairs[:, 1]
    return out
