"""Per-class statistics of old embeddings, streamed from disk in blocks.

Memory stays near (C, D) float64 and float32 plus a few values per image, however many images. The
sums of a block are taken in float32, at most CHUNK rows of a class at once, and added in float64.
"""

import math
import threading

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csc_matrix

from bct.errors import BctError
from bct.rows import BLOCK, read_rows, refuse_not_finite, row_blocks
from bct.threads import each_in_threads, in_threads

CHUNK = 1 << 11  # rows of one thread: they stay in its cache while it works on them
_own = threading.local()  # arrays of a thread: to touch fresh memory costs as much as to read it


def _scratch(name: str, rows: slice, width: int) -> np.ndarray:
    """This thread's array of that name, float32 (B, width), holding what was left in it."""
    size = (rows.stop - rows.start) * width
    own = _own.__dict__
    if name not in own or own[name].size < size:
        own[name] = np.empty(size, np.float32)
    return own[name][:size].reshape(-1, width)


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
    sums, counts, *_ = _class_sums(features, labels, unit)
    return torch.from_numpy(sums), torch.from_numpy(counts)


def _class_sums(
    features: np.ndarray, labels: np.ndarray, unit: bool, squares: bool = False
) -> tuple[np.ndarray, ...]:
    """class_sums; the lengths of the rows, float32 (n,), if unit, else ones; and the sum of the
    squares of each column, float64 (D,), if asked for."""
    counts = np.bincount(labels)
    if (counts == 0).any():
        raise BctError(
            f"class {np.argmin(counts)} has no image, so it has no mean",
            "number the classes 0, 1, ... without gaps (tools/folder_to_rec.py does)",
        )
    width = features.shape[1]
    sums, total = np.zeros((len(counts), width)), np.zeros(width)
    lengths = np.ones(len(labels), np.float32)

    def add(rows: slice) -> tuple[np.ndarray, ...]:
        x = read_rows(features, rows, _scratch("x", rows, width))
        if unit:
            lengths[rows] = np.sqrt(_products(x, x))
        scale = _inverse(lengths[rows])
        classes, members = _members(labels[rows], scale)
        part, columns = members @ x, 0.0
        if squares:
            x *= x
            columns = np.einsum("n,nd->d", scale * scale, x)
        return classes, part, columns

    for classes, part, columns in in_threads(add, len(labels), CHUNK):
        sums[classes] += part
        total += columns
    return sums, counts, lengths, total


def _members(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, csc_matrix]:
    """The classes of some rows, ascending (K,), and the matrix (K, B) that sums up their rows."""
    classes, place = np.unique(labels, return_inverse=True)
    ends = np.arange(len(labels) + 1, dtype=np.int32)
    shape = len(classes), len(labels)
    return classes, csc_matrix((weights, place.astype(np.int32), ends), shape=shape)


def _inverse(lengths: np.ndarray) -> np.ndarray:
    """What rows are multiplied by to have unit length; a row of zeros stays."""
    return 1 / np.maximum(lengths, np.float32(1e-12))


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Scalar product of each two rows, or of each row and y (D,). As matrices of one row and one
    column they are multiplied by the BLAS, at twice the speed of einsum, in this thread alone."""
    return (x[:, None, :] @ y[..., None])[:, 0, 0]


def _means(
    sums: np.ndarray, counts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """w m, float32 (C, D), and sum w m^2, float32 (C,), of the class means m; weights w: (D,).
    sums, float64 (C, D), are divided in place."""
    means, squares = np.empty(sums.shape, np.float32), np.empty(len(sums), np.float32)

    def finish(rows: slice) -> None:
        m = sums[rows]
        m /= counts[rows, None]
        means[rows] = weighted = m * weights
        squares[rows] = np.einsum("cd,cd->c", m, weighted)

    each_in_threads(finish, len(sums), CHUNK)
    return means, squares


def _to_means(
    features: np.ndarray,
    labels: np.ndarray,
    lengths: np.ndarray,
    means: np.ndarray,
    squares: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """sum w (u - m)^2 and sum w u m, float32 (n,), of each unit row u and the mean m of its class.

        sum w (u - m)^2 = sum w u^2 - 2 sum w u m + sum w m^2

    takes fewer passes over the rows. Where the terms nearly cancel the left side is computed.

    Args:
        lengths: of the rows; means, squares: by _means; weights: w, float32 (D,), None: ones.

    Raises:
        BctError: NaN or inf among the embeddings.
    """
    width = features.shape[1]
    distance, product = np.empty((2, len(labels)), np.float32)

    def measure(rows: slice) -> None:
        x, y = read_rows(features, rows, _scratch("x", rows, width)), labels[rows]
        z = means.take(y, axis=0, out=_scratch("z", rows, width), mode="clip")
        scale = _inverse(lengths[rows])
        product[rows] = _products(x, z) * scale
        if weights is None:
            own = np.square(lengths[rows] * scale)
        else:
            own = _products(np.multiply(x, x, out=z), weights) * np.square(scale)
        d = own - 2 * product[rows] + squares[y]
        near = np.flatnonzero(d < own / 16)
        if len(near):
            w = np.ones(width, np.float32) if weights is None else weights
            apart = x[near] * scale[near, None] - means[y[near]] / w
            d[near] = _products(apart * apart, w)
        distance[rows] = d

    each_in_threads(measure, len(labels), CHUNK)
    refuse_not_finite(distance)
    return distance, product


def class_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """BCT's old prototypes: the mean of each class's *raw* embeddings, L2-normalised afterwards.

    Args:
        features: float (n, D); labels: int64 (n,).

    Returns:
        float32 (C, D), row c = class c.
    """
    sums, *_ = _class_sums(features, labels, unit=False)
    means = np.empty(sums.shape, np.float32)

    def finish(rows: slice) -> None:
        m = sums[rows]
        m /= np.maximum(np.sqrt(_products(m, m)), 1e-12)[:, None]
        means[rows] = m

    each_in_threads(finish, len(sums), CHUNK)
    return means


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
    sums, counts, lengths, squares = _class_sums(features, labels, unit=True, squares=True)
    squares[squares < np.finfo(np.float32).tiny] = 1.0
    weights = 1 / squares
    means = _means(sums, counts, weights)
    del sums
    distance, _ = _to_means(features, labels, lengths, *means, weights.astype(np.float32))
    return _nearest(distance, labels, np.ceil(T * counts).astype(np.int64))


def _nearest(distance: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Which images, bool (n,), are the keep[c] >= 1 nearest of their class c; of equally near ones
    those that come first."""
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    farthest = _values(np.sort(_keys(distance, labels))[first + keep - 1])[labels]
    mask = distance < farthest
    room = keep - np.bincount(labels[mask], minlength=len(keep))
    equal = np.flatnonzero(distance == farthest)
    equal = equal[np.argsort(labels[equal], kind="stable")]
    of_class = labels[equal]
    rank = np.arange(len(equal)) - np.searchsorted(of_class, of_class)
    mask[equal[rank < room[of_class]]] = True
    return mask


def _keys(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whole numbers, uint64, in the order of the labels and then of the float32 values >= 0: the
    label above the bits of the value, which are in its order."""
    keys = labels.astype(np.uint64) << np.uint64(32)
    keys |= values.view(np.uint32)
    return keys


def _values(keys: np.ndarray) -> np.ndarray:
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
    normalised again. The distances r of its n >= 4 images to the centre are sorted; those outside
    [q1 - 1.5 (q3 - q1), q3 + 1.5 (q3 - q1)] are dropped, q1 = r[n // 4], q3 = r[3 n // 4]; so are
    the angles to the centre's direction. Source: Pan et al., AdvBCT, CVPR 2023.

    Args:
        features: float (n, D); labels: int64 (n,).

    Returns:
        (C,) records: centre float32 (D,); radius and smallest_radius, the largest and smallest
        distance kept; angle, the largest angle kept, in radians; count, images; kept, distances
        kept. A radius says something only where kept > 1.
    """
    sums, counts, lengths, _ = _class_sums(features, labels, unit=True)
    centres, squares = _means(sums, counts, np.ones(features.shape[1]))
    del sums
    radii, angles = _to_means(features, labels, lengths, centres, squares)
    np.sqrt(radii, out=radii)
    angles /= np.maximum(np.sqrt(squares), np.float32(1e-12))[labels]
    np.arccos(np.clip(angles, -1, 1, out=angles), out=angles)
    out = np.zeros(len(counts), class_statistics_dtype(features.shape[1]))
    out["centre"], out["count"] = centres, counts
    out["smallest_radius"], out["radius"], out["kept"] = _within_fences(radii, labels)
    _, out["angle"], _ = _within_fences(angles, labels)
    return out


def class_statistics_dtype(dim: int) -> np.dtype:
    numbers = [(name, np.float32) for name in ("radius", "smallest_radius", "angle")]
    counts = [(name, np.int64) for name in ("count", "kept")]
    return np.dtype([("centre", np.float32, (dim,)), *numbers, *counts])


def _within_fences(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """(smallest, largest, number) of each class's values >= 0 after the 1.5 IQR rule."""
    keys = np.sort(_keys(values, labels))
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    q1, q3 = _values(keys[first + sizes // 4]), _values(keys[first + 3 * sizes // 4])
    reach = np.where(sizes >= 4, np.float32(1.5) * (q3 - q1), np.float32(np.inf))
    classes = np.arange(len(sizes))
    start = np.searchsorted(keys, _keys(np.maximum(q1 - reach, 0), classes))
    stop = np.searchsorted(keys, _keys(q3 + reach, classes), side="right")  # q3 lies within
    return _values(keys[start]), _values(keys[stop - 1]), stop - start
