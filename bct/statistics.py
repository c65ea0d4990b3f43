"""Per-class statistics of old embeddings, streamed from disk in blocks.

Memory stays near (C, D) float64 and float32 plus a few values per image, however many images. The
sums of a block are taken in float32, at most CHUNK rows of a class at once, and added in float64.
"""

import math
import mmap
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix

from bct.errors import BctError
from bct.threads import each_in_threads, in_threads

BLOCK = 1 << 13  # rows
CHUNK = 1 << 11  # rows of one thread: they stay in its cache while it works on them


def row_blocks(features: np.ndarray, block: int = BLOCK) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice, float32 (block, D)) over the rows of an array.

    A memory-mapped file is read, not mapped, so that its pages do not count as this process's
    memory; reading is also faster.
    """
    for start in range(0, len(features), block):
        rows = slice(start, min(start + block, len(features)))
        yield rows, torch.from_numpy(_read(features, rows))


def _read(features: np.ndarray, rows: slice) -> np.ndarray:
    """A copy of some rows, float32 (B, D)."""
    # a part of a mapped array keeps the offset of the whole; what changed a private one is no file
    whole_file = isinstance(features, np.memmap) and isinstance(features.base, mmap.mmap)
    if whole_file and features.flags.c_contiguous and features.mode != "c":
        width = features.shape[1]
        x = np.fromfile(
            features.filename,
            features.dtype,
            (rows.stop - rows.start) * width,
            offset=features.offset + rows.start * width * features.itemsize,
        )
        return x.reshape(-1, width).astype(np.float32, copy=False)
    return np.array(features[rows], np.float32)


def class_sums(
    features: np.ndarray, labels: np.ndarray, unit: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the embeddings of every class, float64 (C, D), and the class sizes, int64 (C,).

    Args:
        features: float (n, D); labels: int64 (n,) in 0..C-1, in any order.
        unit: L2-normalise each row first.

    Raises:
        BctError: a class of 0..C-1 without any image.
    """
    sums, counts, _ = _class_sums(features, labels, unit)
    return torch.from_numpy(sums), torch.from_numpy(counts)


def _class_sums(
    features: np.ndarray, labels: np.ndarray, unit: bool, squares: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """class_sums, and the sum of the squares of each column, float64 (D,), if asked for."""
    counts = np.bincount(labels)
    if (counts == 0).any():
        raise BctError(
            f"class {np.argmin(counts)} has no image, so it has no mean",
            "number the classes 0, 1, ... without gaps (tools/folder_to_rec.py does)",
        )
    sums = np.zeros((len(counts), features.shape[1]))
    total = np.zeros(features.shape[1])

    def add(rows: slice) -> tuple[np.ndarray, ...]:
        x = _read(features, rows)
        if unit:
            _normalise(x)
        classes, mixing = _members(labels[rows])
        columns = np.einsum("nd,nd->d", x, x) if squares else 0.0
        return classes, mixing @ x, columns

    for classes, part, columns in in_threads(add, len(labels), CHUNK):
        sums[classes] += part
        total += columns
    return sums, counts, total


def _members(labels: np.ndarray) -> tuple[np.ndarray, csr_matrix]:
    """The classes of some rows, ascending (K,), and the matrix (K, B) of ones that sums them up."""
    order = np.argsort(labels, kind="stable")
    first = np.flatnonzero(np.diff(labels[order], prepend=-1, append=-1))
    ones = np.ones(len(labels), np.float32)
    shape = len(first) - 1, len(labels)
    return labels[order[first[:-1]]], csr_matrix((ones, order, first), shape=shape)


def _normalise(x: np.ndarray) -> None:
    """L2-normalises rows in place; a row of zeros stays."""
    x *= 1 / np.maximum(_lengths(x), np.float32(1e-12))[:, None]


def _lengths(x: np.ndarray) -> np.ndarray:
    return np.sqrt(_products(x, x))


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Scalar product of each two rows. As matrices of one row and one column they are multiplied by
    the BLAS, at twice the speed of einsum, and without holding the interpreter."""
    return (x[:, None, :] @ y[:, :, None])[:, 0, 0]


def class_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """BCT's old prototypes: the mean of each class's *raw* embeddings, L2-normalised afterwards.

    Args:
        features: float (n, D); labels: int64 (n,).

    Returns:
        float32 (C, D), row c = class c.
    """
    sums, _ = class_sums(features, labels)
    return F.normalize(sums, out=sums).float().numpy()


def credible_mask(features: np.ndarray, labels: np.ndarray, T: float) -> np.ndarray:
    """MixBCT's denoising: which old embeddings are near their class (arXiv 2308.06948, sec. 3.3).

        X = rows of unit length,  Z = X with every column scaled to unit length over the whole file
        d_i = |Z_i - mean of its class in Z|;  the ceil(T n_c) smallest of a class are credible

    Equal distances are kept in the order of their index. Classes need not be contiguous.

    Args:
        features: float (n, D); labels: int64 (n,); T: kept share, in (0, 1].

    Returns:
        bool (n,).
    """
    sums, counts, squares = _class_sums(features, labels, unit=True, squares=True)
    squares[squares == 0] = 1.0
    scale = np.sqrt(squares)
    sums /= counts[:, None]
    sums /= scale
    means = sums.astype(np.float32)  # of Z
    del sums
    stretch = (1 / scale).astype(np.float32)
    distance = np.empty(len(labels), np.float32)

    def measure(rows: slice) -> None:
        x = _read(features, rows)
        _normalise(x)
        x *= stretch
        x -= means.take(labels[rows], axis=0)
        distance[rows] = _lengths(x)

    each_in_threads(measure, len(labels), CHUNK)
    if not np.isfinite(distance).all():
        raise BctError(
            "the embeddings hold NaN or inf", "check the weights and the precision (--amp off)"
        )
    return _nearest(distance, labels, np.ceil(T * counts).astype(np.int64))


def _nearest(distance: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Which images, bool (n,), are the keep[c] >= 1 nearest of their class c; of equally near ones
    those that come first."""
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    farthest = _by_class(distance, labels)[first + keep - 1][labels]
    mask = distance < farthest
    room = keep - np.bincount(labels[mask], minlength=len(keep))
    equal = np.flatnonzero(distance == farthest)
    equal = equal[np.argsort(labels[equal], kind="stable")]
    of_class = labels[equal]
    rank = np.arange(len(equal)) - np.searchsorted(of_class, of_class)
    mask[equal[rank < room[of_class]]] = True
    return mask


def _by_class(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float32 values >= 0 (n,) by class, within it ascending.

    One sort of whole numbers: the label above the bits of the value, which are in its order.
    """
    keys = labels.astype(np.uint64) << np.uint64(32)
    keys |= values.view(np.uint32)
    keys.sort()
    return keys.astype(np.uint32).view(np.float32)


def entropy_mask(features: np.ndarray, labels: np.ndarray, T: float) -> np.ndarray:
    """NCCL's filter: which old embeddings the old space assigns to few classes (Wu et al., AAAI
    2022, "highly credible" samples).

        p_i = softmax over all classes c of -|n(o_i) - m_c|^2 D / (2 v),   m_c = mean of n(o) in c
        credible: entropy(p_i) <= T ln C,       v = mean over images of |n(o_i) - own m|^2

    p_i is the posterior when classes are Gaussians around their means, of variance v / D in each
    dimension. The published script normalises over an axis of length 1, so its entropy is always 0.

    Args:
        features: float (n, D); labels: int64 (n,); T: share of the largest possible entropy.

    Returns:
        bool (n,).
    """
    sums, counts = class_sums(features, labels, unit=True)
    means = (sums / counts[:, None]).float()
    # the mean square distance to the own mean is 1 - |m|^2, weighted by class size
    spread = 1 - (counts * means.double().square().sum(1)).sum().item() / len(labels)
    squares = means.square().sum(1)
    mask = np.empty(len(labels), bool)
    block = max(1, min(BLOCK, (1 << 26) // len(means)))  # (block, C) stays within 256 MiB
    for rows, x in row_blocks(features, block):
        distance = 1 + squares - 2 * F.normalize(x) @ means.t()
        log_p = F.log_softmax(-distance * features.shape[1] / max(2 * spread, 1e-6), dim=1)
        entropy = -(log_p.exp() * log_p).sum(1)
        mask[rows] = (entropy <= T * math.log(len(means))).numpy()
    return mask


def class_statistics(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far each class reaches in the old space (AdvBCT's and LCE's class statistics).

    Embeddings are L2-normalised; a class's centre is the plain mean of its unit embeddings, not
    normalised again. Of the sorted distances r of its n >= 4 images to the centre those outside
    [q1 - 1.5 (q3 - q1), q3 + 1.5 (q3 - q1)] are dropped, q1 = r[n // 4], q3 = r[3 n // 4]; likewise
    of the angles to the centre's direction. Source: Pan et al., AdvBCT, CVPR 2023.

    Args:
        features: float (n, D); labels: int64 (n,).

    Returns:
        (C,) records: centre float32 (D,); radius and smallest_radius, the largest and smallest
        distance kept; angle, the largest angle kept, in radians; count, images; kept, distances
        kept. A radius says something only where kept > 1.
    """
    sums, counts = class_sums(features, labels, unit=True)
    sums /= counts[:, None]
    centres = sums.float().numpy()
    del sums
    reach = np.maximum(_lengths(centres), np.float32(1e-12))
    radii, angles = np.empty(len(labels), np.float32), np.empty(len(labels), np.float32)

    def measure(rows: slice) -> None:
        x, y = _read(features, rows), labels[rows]
        _normalise(x)
        centre = centres.take(y, axis=0)  # (B, D)
        cosine = _products(x, centre) / reach[y]
        angles[rows] = np.arccos(np.clip(cosine, -1, 1))
        x -= centre
        radii[rows] = _lengths(x)

    each_in_threads(measure, len(labels), CHUNK)
    out = np.zeros(len(counts), class_statistics_dtype(features.shape[1]))
    out["centre"], out["count"] = centres, counts.numpy()
    out["smallest_radius"], out["radius"], out["kept"] = _within_fences(radii, labels)
    _, out["angle"], _ = _within_fences(angles, labels)
    return out


def class_statistics_dtype(dim: int) -> np.dtype:
    numbers = [(name, np.float32) for name in ("radius", "smallest_radius", "angle")]
    counts = [(name, np.int64) for name in ("count", "kept")]
    return np.dtype([("centre", np.float32, (dim,)), *numbers, *counts])


def _within_fences(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """(smallest, largest, number) of each class's values >= 0 after the 1.5 IQR rule."""
    values = _by_class(values, labels)
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    q1, q3 = values[first + sizes // 4], values[first + 3 * sizes // 4]
    reach = np.where(sizes >= 4, np.float32(1.5) * (q3 - q1), np.float32(np.inf))
    low, high = np.repeat(q1 - reach, sizes), np.repeat(q3 + reach, sizes)
    keep = (values >= low) & (values <= high)  # never empty: q1 and q3 lie within
    smallest = np.minimum.reduceat(np.where(keep, values, np.inf), first)
    largest = np.maximum.reduceat(np.where(keep, values, -np.inf), first)
    return smallest, largest, np.add.reduceat(keep, first)
