"""AdvBCT's allocation of a training set to the old and the new model, by classes and by images.

By classes: all C of them are shuffled by numpy's legacy generator, seed 666; the first C * p / 100
are old. Images are listed class by class in the order of the set's labels. The old model's classes
keep that order as 0 ... C_old - 1; in the list of all classes the others follow from C_old on, so
that the old labels are a prefix of the new ones.

By images: of a class with n = 2 or 3 images the first is old; of more, n * p / 100 of their order
shuffled with the seed 666 + label, at least one. The other images are new.

Published: numbers are cut off as floats are, p in the files' names, too (29 is called 28, the rest
71); the only image of a class is in both lists, which are not disjoint then, and a class whose
n * p / 100 is below 1 keeps no old image, which is refused. Corrected: such an image is new only,
and the classes without an old image come last, so that here, too, old labels are a prefix.
"""

from typing import NamedTuple

import numpy as np

from bct.errors import BctError

SEED = 666


class Allocation(NamedTuple):
    """A list to be written: its name behind the data set's, the images int64 (n,) in their order,
    their labels int64 (n,), and int64 (C,), what class of the set each label is."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: np.ndarray


def by_class(labels: np.ndarray, percent: int, published: bool = False) -> list[Allocation]:
    """The lists of the old classes, of all, and of the others. BctError if one were empty.

    Args:
        labels: int64 (N,), of the whole set, 0 ... C - 1.
        percent: of the classes, for the old model.
    """
    count = int(labels.max()) + 1
    old = old_classes(count, percent, published)
    rest = np.setdiff1d(np.arange(count), old)
    _refuse_empty(old, rest, f"{len(old)} of {count} classes", "a larger --ratio, or another set")
    shares = names_of(percent, published)
    chosen = (
        (f"old_{shares[0]}percent_class", old),
        ("new_100percent_class", np.concatenate((old, rest))),
        (f"new_{shares[1]}percent_class", rest),
    )
    everything = np.ones(len(labels), bool)
    return [_listed(name, labels, everything, classes) for name, classes in chosen]


def by_data(labels: np.ndarray, percent: int, published: bool = False) -> list[Allocation]:
    """The lists of the old images, of all, and of the new ones; see by_class."""
    old, new = old_images(labels, percent, published)
    counts = np.bincount(labels[old], minlength=labels.max() + 1)
    if published and not counts.all():
        raise BctError(
            f"{percent} % of class {np.argmin(counts)} is no image, as published: {len(counts)} "
            f"classes leave {np.sum(counts == 0)} without an old one",
            "give a larger --ratio, or --parity corrected, which keeps one",
        )
    _refuse_empty(old, new, "no image", "a set with several images of a class")
    classes = np.argsort(counts == 0, kind="stable")  # those without an old image come last
    shares = names_of(percent, published)
    chosen = (
        (f"old_{shares[0]}percent_data", old, classes[: np.sum(counts > 0)]),
        ("new_100percent_data", old | new, classes),
        (f"new_{shares[1]}percent_data", new, classes),
    )
    return [_listed(name, labels, mask, group) for name, mask, group in chosen]


def old_classes(count: int, percent: int, published: bool = False) -> np.ndarray:
    """int64, the old model's classes, ascending."""
    order = _shuffled(count, SEED)
    return np.sort(order[: _share(count, percent, published)])


def old_images(
    labels: np.ndarray, percent: int, published: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Which images are the old model's, and which the new one's: bool (N,) each."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    old = np.zeros(len(labels), bool)
    new = np.ones(len(labels), bool)
    for label, images in enumerate(np.split(order, ends[:-1])):
        n = len(images)
        if n < 4:
            chosen = images[:1] if n > 1 or published else images[:0]
        else:
            share = _share(n, percent, published)
            chosen = images[_shuffled(n, SEED + label)[: share if published else max(1, share)]]
        old[chosen] = True
        new[chosen] = n == 1
    return old, new


def names_of(percent: int, published: bool = False) -> tuple[int, int]:
    """The shares that the files' names say, of the old and of the new model."""
    if published:
        return int(percent / 100 * 100), int((1 - percent / 100) * 100)
    return percent, 100 - percent


def _share(n: int, percent: int, published: bool) -> int:
    return int(n * (percent / 100)) if published else n * percent // 100


def _shuffled(n: int, seed: int) -> np.ndarray:
    """0 ... n - 1 as numpy's old global generator shuffles them: the order is published."""
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    return order


def _listed(name: str, labels: np.ndarray, mask: np.ndarray, classes: np.ndarray) -> Allocation:
    """Of the images in the mask those of some classes, class by class in the set's order."""
    new = np.full(labels.max() + 1, -1)
    new[classes] = np.arange(len(classes))
    images = np.flatnonzero(mask & (new[labels] >= 0))
    images = images[np.argsort(labels[images], kind="stable")]
    return Allocation(name, images, new[labels[images]], classes)


def _refuse_empty(old: np.ndarray, rest: np.ndarray, what: str, give: str) -> None:
    if not len(old) or not len(rest) or (old.dtype == bool and not (old.any() and rest.any())):
        raise BctError(f"{what} for the old model leaves a part empty", f"give {give}")
