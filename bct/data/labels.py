"""What labels have to be, for every data set and tool: 0 ... C - 1, each with an image.

No table of C entries is made before C is known to be at most the number of images: one damaged
label must not ask for 100 GB.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bct.errors import BctError

_CLASSES = "number the classes 0 to C-1, each with an image"


class Faults(NamedTuple):
    """What is wrong with some labels.

    strange: int64, the positions of labels that are not 0, 1, 2, ...; the rest is about the others.
    classes: the largest label + 1. largest: the position of that label, -1 if there is none.
    unused, first_unused: how many of the labels 0 ... classes - 1 no image has, and the first.
    """

    strange: np.ndarray
    classes: int
    largest: int
    unused: int
    first_unused: int


def label_faults(labels: np.ndarray) -> Faults:
    """Looks at the labels (n,) of images, of any real type."""
    whole = (labels >= 0) & (labels < 2**31) & (labels == np.floor(labels))  # False for NaN
    used = np.unique(labels[whole]).astype(np.int64)
    classes = int(used[-1]) + 1 if len(used) else 0
    largest = int(np.argmax(np.where(whole, labels, -1))) if len(used) else -1
    gaps = np.flatnonzero(used != np.arange(len(used)))
    first = int(gaps[0]) if len(gaps) else len(used)
    return Faults(np.flatnonzero(~whole), classes, largest, classes - len(used), first)


def check_labels(
    labels: np.ndarray, what: str, describe: Callable[[int], str], do: str = _CLASSES
) -> int:
    """The number of classes C of the labels (n,) of images.

    Args:
        what: whose they are, for messages. describe: names the image at a position. do: the advice.

    Raises:
        BctError: a label that is not whole or below 0; a label below C that no image has, which is
            so if there are more classes than images.
    """
    faults = label_faults(labels)
    if len(faults.strange):
        first = faults.strange[0]
        raise BctError(
            f"{describe(first)} has label {labels[first]:g}, not 0, 1, 2, ... "
            f"({len(faults.strange)} of {len(labels)} images have such labels)",
            do,
        )
    if faults.unused:  # always so if there are more classes than images
        raise BctError(
            f"{what} has no image of class {faults.first_unused}, but {describe(faults.largest)} "
            f"is of class {faults.classes - 1}: {len(labels)} images leave {faults.unused} "
            "classes without one",
            do,
        )
    return faults.classes
