"""Numbers of images, looked at within each class: the smallest, and those that are no outliers.

Classes 0..C-1 need not be contiguous; all are sorted at once.
"""

import numpy as np


def nearest(
    distance: np.ndarray, error: np.ndarray, labels: np.ndarray, keep: np.ndarray
) -> np.ndarray:
    """Which images, bool (n,), are the keep[c] >= 1 nearest of their class c; of equally near ones
    those that come first.

    Args:
        distance: float32 (n,), >= 0. error: float (n,), how far it may be from the true one: two
            are equal if they differ by no more than both errors. labels: int64 (n,).
    """
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    farthest = _values(np.sort(_keys(distance, labels))[first + keep - 1])[labels]
    mask = distance < farthest - 2 * error
    room = keep - np.bincount(labels[mask], minlength=len(keep))
    equal = np.flatnonzero((distance <= farthest + 2 * error) & ~mask)
    equal = equal[np.argsort(labels[equal], kind="stable")]
    of_class = labels[equal]
    rank = np.arange(len(equal)) - np.searchsorted(of_class, of_class)
    mask[equal[rank < room[of_class]]] = True
    return mask


def within_fences(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """(smallest, largest, number) of each class's values, float32 (n,), >= 0, after the 1.5 IQR
    rule."""
    keys = np.sort(_keys(values, labels))
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    q1, q3 = _values(keys[first + sizes // 4]), _values(keys[first + 3 * sizes // 4])
    reach = np.where(sizes >= 4, np.float32(1.5) * (q3 - q1), np.float32(np.inf))
    classes = np.arange(len(sizes))
    start = np.searchsorted(keys, _keys(np.maximum(q1 - reach, 0), classes))
    stop = np.searchsorted(keys, _keys(q3 + reach, classes), side="right")  # q3 lies within
    return _values(keys[start]), _values(keys[stop - 1]), stop - start


def numbered(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Labels of known classes, bool (C,), numbered without the others."""
    return labels if known.all() else (np.cumsum(known) - 1)[labels]


def _keys(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whole numbers, uint64, in the order of the labels and then of the float32 values >= 0: the
    label above the bits of the value, which are in its order."""
    keys = labels.astype(np.uint64) << np.uint64(32)
    keys |= values.view(np.uint32)
    return keys


def _values(keys: np.ndarray) -> np.ndarray:
    return keys.astype(np.uint32).view(np.float32)
