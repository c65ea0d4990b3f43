"""Per-class statistics of old embeddings, streamed from disk in blocks.

Memory stays near (C, D) float64 and float32 plus a few values per image, however many images. The
sums of a block are taken in float32, at most CHUNK rows of a class at once, and added in float64.

Rows that are no embeddings are treated as bct/rows.py says: one that is not finite is refused, and
rows of zeros stay out of sums, masks and radii. Whoever wants to know which gives a list, `zeros`.
A class that has nothing else is refused, unless the features are said to be partial: then its mean
is zeros, too, and its count 0.
"""

import math
import threading
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csc_matrix

from bct.errors import BctError
from bct.rows import BLOCK, is_odd, read_rows, refuse_not_finite, unit_blocks, unit_rows
from bct.stored.class_table import NUMBERS, class_statistics_dtype
from bct.stored.within_classes import nearest, numbered, within_fences
from bct.threads import each_in_threads, in_threads

CHUNK = 1 << 11  # rows of one thread: they stay in its cache while it works on them
_SHORT, _LONG = 1e-20, 1e30  # of all rows at once, squared
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
    """Sum of the embeddings of every class, float64 (C, D), and how many they are, int64 (C,).

    Args:
        features: float (n, D); labels: int64 (n,) in 0..C-1, in any order.
        unit: L2-normalise each row first.

    Raises:
        BctError: a class of 0..C-1 without any image; a row that is not finite.
    """
    sums, found, _ = _class_sums(features, labels, unit)
    return torch.from_numpy(sums), torch.from_numpy(found.counts)


class _Rows(NamedTuple):
    """counts: int64 (C,), of a class's rows that are not zeros. lengths: float32 (n,), if they are
    wanted, 1 for those in `odd`; else ones; 0 for rows of zeros. odd: int64 (k,), ascending, rows
    whose squares float32 does not hold, and zeros."""

    counts: np.ndarray
    lengths: np.ndarray
    odd: np.ndarray

    @property
    def zeros(self) -> np.ndarray:
        """Which rows are zeros, int64 (k,), ascending."""
        return self.odd[self.lengths[self.odd] == 0]

    @property
    def embedded(self) -> np.ndarray | slice:
        """The other rows; in most files all, and no copy."""
        return self.lengths > 0 if len(self.zeros) else slice(None)


def _class_sums(
    features: np.ndarray, labels: np.ndarray, unit: bool, squares: bool = False
) -> tuple[np.ndarray, _Rows, np.ndarray]:
    """Sums, float64 (C, D); about the rows; the sum of the squares of each column, float64 (D,), if
    wanted."""
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
        with np.errstate(all="ignore"):  # of odd rows
            if unit or not _SHORT < np.dot(x.ravel(), x.ravel()) < _LONG:
                length = np.sqrt(_products(x, x))
                odd = np.flatnonzero(is_odd(length))
            else:  # sums of such rows float32 holds well
                length, odd = np.ones(len(x), np.float32), np.flatnonzero(x[:, 0] == 0)
                odd = odd[~x[odd].any(axis=1)]
        if len(odd):
            x, length[odd] = _odd_rows(features, rows, x, odd, unit)
        lengths[rows] = length if unit else length > 0
        scale = _inverse(lengths[rows])
        classes, members = _members(labels[rows], scale)
        part, columns = members @ x, 0.0
        if squares:
            x *= x
            columns = np.einsum("n,nd->d", scale * scale, x)
        return classes, part, columns, rows.start + odd

    odd = [np.empty(0, np.int64)]
    for classes, part, columns, own in in_threads(add, len(labels), CHUNK):
        sums[classes] += part
        total += columns
        odd.append(own)
    odd = np.concatenate(odd)
    zeros = odd[lengths[odd] == 0]
    counts -= np.bincount(labels[zeros], minlength=len(counts))
    return sums, _Rows(counts, lengths, odd), total


def _odd_rows(
    features: np.ndarray, rows: slice, x: np.ndarray, odd: np.ndarray, unit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """x, float32 (B, D), with its odd rows of unit length, or else all of x in float64, which has
    room for all of float32's sums; and 1 for each odd row, 0 if it is zeros, (k,).

    Raises BctError for one that is not finite.
    """
    own = features[rows.start + odd]
    refuse_not_finite(own, _name(features), lambda row: rows.start + odd[row])
    if unit:
        x[odd] = unit_rows(own)
    else:
        x = features[rows].astype(np.float64)
    return x, own.any(axis=1)


def _name(features: np.ndarray) -> str:
    """What messages call them."""
    return str(getattr(features, "filename", None) or "the embeddings")


def _require_embeddings(
    features: np.ndarray, found: _Rows, zeros: list[int] | None, partial: bool
) -> None:
    """Adds the rows of zeros to `zeros`. Raises BctError for a class that has nothing else, unless
    the features are partial."""
    of_zeros = found.zeros
    if len(of_zeros) == len(found.lengths):
        raise BctError(
            f"{_name(features)}: all {len(of_zeros)} rows are zeros",
            "check the old model, then extract its embeddings again",
        )
    if not partial and (found.counts == 0).any():
        raise BctError(
            f"{_name(features)}: all rows of class {np.argmin(found.counts)} are zeros, so it has "
            "no mean",
            "check the old model and that class's images, then extract its embeddings again",
        )
    if zeros is not None:
        zeros += of_zeros.tolist()


def _members(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, csc_matrix]:
    """The classes of some rows, ascending (K,), and the matrix (K, B) that sums up their rows."""
    classes, place = np.unique(labels, return_inverse=True)
    ends = np.arange(len(labels) + 1, dtype=np.int32)
    shape = len(classes), len(labels)
    return classes, csc_matrix((weights, place.astype(np.int32), ends), shape=shape)


def _inverse(lengths: np.ndarray) -> np.ndarray:
    """What rows are multiplied by to have unit length; a row of zeros stays."""
    return 1 / np.where(lengths == 0, np.float32(1), lengths)


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
        m /= np.maximum(counts[rows, None], 1)
        means[rows] = weighted = m * weights
        squares[rows] = np.einsum("cd,cd->c", m, weighted)

    each_in_threads(finish, len(sums), CHUNK)
    return means, squares


def _to_means(
    features: np.ndarray,
    labels: np.ndarray,
    found: _Rows,
    means: np.ndarray,
    squares: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """sum w (u - m)^2 and sum w u m, float32 (n,), of each unit row u and the mean m of its class.

        sum w (u - m)^2 = sum w u^2 - 2 sum w u m + sum w m^2

    takes fewer passes over the rows. Where the terms nearly cancel the left side is computed.

    Args:
        found: by _class_sums, unit; means, squares: by _means; weights: w, float32 (D,), None:
            ones.
    """
    width, lengths = features.shape[1], found.lengths
    distance, product = np.empty((2, len(labels)), np.float32)

    def measure(rows: slice) -> None:
        x, y = read_rows(features, rows, _scratch("x", rows, width)), labels[rows]
        odd = found.odd[slice(*np.searchsorted(found.odd, [rows.start, rows.stop]))]
        if len(odd):
            x[odd - rows.start] = unit_rows(features[odd])
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
    refuse_not_finite(distance, _name(features))
    return distance, product


def class_means(
    features: np.ndarray, labels: np.ndarray, zeros: list[int] | None = None, partial: bool = False
) -> np.ndarray:
    """BCT's old prototypes: the mean of each class's *raw* embeddings, L2-normalised afterwards.

    Args:
        features: float (n, D); labels: int64 (n,). zeros, partial: see above.

    Returns:
        float32 (C, D), row c = class c.

    Raises:
        BctError: a class without an embedding; a row that is not finite.
    """
    sums, found, _ = _class_sums(features, labels, unit=False)
    _require_embeddings(features, found, zeros, partial)
    means = np.empty(sums.shape, np.float32)

    def finish(rows: slice) -> None:
        means[rows] = unit_rows(sums[rows])

    each_in_threads(finish, len(sums), CHUNK)
    return means


def credible_mask(
    features: np.ndarray,
    labels: np.ndarray,
    T: float,
    zeros: list[int] | None = None,
    partial: bool = False,
) -> np.ndarray:
    """MixBCT's denoising: which old embeddings are near their class (arXiv 2308.06948, sec. 3.3).

        X = rows of unit length,  Z = X with every column scaled to unit length over the whole file
        d_i = |Z_i - mean of its class in Z|;  the ceil(T n_c) smallest of a class are credible

    Equal distances are kept in the order of their index; they are equal as far as float32 can tell,
    so the two images of a class of two always are. Classes need not be contiguous.

    Args:
        features: float (n, D); labels: int64 (n,); T: kept share, in (0, 1].
        zeros, partial: see above.

    Returns:
        bool (n,).

    Raises:
        BctError: as class_means.
    """
    sums, found, squares = _class_sums(features, labels, unit=True, squares=True)
    _require_embeddings(features, found, zeros, partial)
    squares[squares < np.finfo(np.float32).tiny] = 1.0
    weights = 1 / squares
    means, of_means = _means(sums, found.counts, weights)
    del sums
    distance, _ = _to_means(features, labels, found, means, of_means, weights.astype(np.float32))
    error = 8 * np.finfo(np.float32).eps * np.sqrt(distance * (distance + of_means[labels]))
    mask, some, known = np.zeros(len(labels), bool), found.embedded, found.counts > 0
    keep = np.ceil(T * found.counts[known]).astype(np.int64)
    mask[some] = nearest(distance[some], error[some], numbered(labels[some], known), keep)
    return mask


def entropy_mask(
    features: np.ndarray,
    labels: np.ndarray,
    T: float,
    zeros: list[int] | None = None,
    partial: bool = False,
) -> np.ndarray:
    """NCCL's filter: which old embeddings the old space assigns to few classes (Wu et al., AAAI
    2022, "highly credible" samples).

        p_i = softmax over all classes c of -|n(o_i) - m_c|^2 D / (2 v),   m_c = mean of n(o) in c
        credible: entropy(p_i) <= T ln C,       v = mean over images of |n(o_i) - own m|^2

    p_i is the posterior when classes are Gaussians around their means, of variance v / D in each
    dimension. The published script normalises over an axis of length 1, so its entropy is always 0.

    Args:
        features: float (n, D); labels: int64 (n,); T: share of the largest possible entropy.
        zeros, partial: see above.

    Returns:
        bool (n,).

    Raises:
        BctError: as class_means.
    """
    sums, found, _ = _class_sums(features, labels, unit=True)
    _require_embeddings(features, found, zeros, partial)
    sums, counts = torch.from_numpy(sums), torch.from_numpy(found.counts)
    known = counts > 0
    sums, counts = sums[known], counts[known]  # the other classes are nobody's
    means = (sums / counts[:, None]).float()
    # the mean square distance to the own mean is 1 - |m|^2, weighted by class size
    spread = 1 - (counts * means.double().square().sum(1)).sum().item() / counts.sum().item()
    squares = means.square().sum(1)
    mask = np.empty(len(labels), bool)
    block = max(1, min(BLOCK, (1 << 26) // len(means)))  # (block, C) stays within 256 MiB
    for rows, x in unit_blocks(features, _name(features), block):
        distance = 1 + squares - 2 * x @ means.t()
        log_p = F.log_softmax(-distance * features.shape[1] / max(2 * spread, 1e-6), dim=1)
        entropy = -(log_p.exp() * log_p).sum(1)
        mask[rows] = (entropy <= T * math.log(len(means))).numpy()
    mask[found.zeros] = False
    return mask


def class_statistics(
    features: np.ndarray, labels: np.ndarray, zeros: list[int] | None = None, partial: bool = False
) -> np.ndarray:
    """How far each class reaches in the old space (AdvBCT's and LCE's class statistics).

    Embeddings are L2-normalised; a class's centre is the plain mean of its unit embeddings, not
    normalised again. The distances r of its n >= 4 images to the centre are sorted; those outside
    [q1 - 1.5 (q3 - q1), q3 + 1.5 (q3 - q1)] are dropped, q1 = r[n // 4], q3 = r[3 n // 4]; so are
    the angles to the centre's direction. Source: Pan et al., AdvBCT, CVPR 2023.

    Args:
        features: float (n, D); labels: int64 (n,). zeros, partial: see above.

    Returns:
        (C,) records: centre float32 (D,); radius, smallest_radius, angle (in radians, the largest)
        of those kept, which are kept and kept_angles; cosine, the smallest of all `count` images.

    Raises:
        BctError: as class_means.
    """
    sums, found, _ = _class_sums(features, labels, unit=True)
    _require_embeddings(features, found, zeros, partial)
    centres, squares = _means(sums, found.counts, np.ones(features.shape[1]))
    del sums
    radii, cosines = _to_means(features, labels, found, centres, squares)
    length = np.maximum(np.sqrt(squares), np.float32(1e-12))
    cosines /= length[labels]
    # |u - m|^2 = (1 - |m|)^2 + |m| (2 sin(angle / 2))^2; arccos would lose small angles
    angles = (radii - np.square(1 - length)[labels]) / length[labels]
    angles = 2 * np.arcsin(np.sqrt(np.clip(angles, 0, 4)) / 2)
    np.sqrt(radii, out=radii)
    out = np.zeros(len(centres), class_statistics_dtype(features.shape[1]))
    out["centre"], out["count"] = centres, found.counts
    some, known = found.embedded, found.counts > 0
    labels = numbered(labels[some], known)
    smallest, radius, kept = within_fences(radii[some], labels)
    _, angle, kept_angles = within_fences(angles[some], labels)
    cosine = np.ones(int(known.sum()), np.float32)
    np.minimum.at(cosine, labels, cosines[some])
    numbers = radius, smallest, angle, cosine, kept, kept_angles
    for name, values in zip((*NUMBERS, "kept", "kept_angles"), numbers, strict=True):
        out[name][known] = values
    return out
