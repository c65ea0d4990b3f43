"""Per-class statistics of old embeddings, streamed from disk in blocks.

Memory stays near (C, D) float64 and float32 plus a few values per image, however many images.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from bct.errors import BctError

BLOCK = 1 << 13  # rows


def row_blocks(features: np.ndarray, block: int = BLOCK) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice, float32 (block, D)) over the rows of an array.

    A memory-mapped file is mapped anew for every block, so that pages already read do not stay in
    this process's memory.
    """
    for start in range(0, len(features), block):
        stop = min(start + block, len(features))
        rows = features[start:stop]
        if isinstance(features, np.memmap):
            width = features.shape[1]
            rows = np.memmap(
                features.filename,
                features.dtype,
                "r",
                offset=features.offset + start * width * features.itemsize,
                shape=(stop - start, width),
            )
        yield slice(start, stop), torch.from_numpy(np.array(rows, np.float32))


def class_sums(
    features: np.ndarray, labels: np.ndarray, scale: torch.Tensor | None = None, unit: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the embeddings of every class, float64 (C, D), and the class sizes, int64 (C,).

    Args:
        features: float (n, D); labels: int64 (n,) in 0..C-1.
        unit: L2-normalise each row first.
        scale: optional (D,), each column is divided by it (after normalising).

    Raises:
        BctError: a class of 0..C-1 without any image.
    """
    counts = torch.from_numpy(np.bincount(labels))
    if (counts == 0).any():
        empty = int(torch.nonzero(counts == 0)[0])
        raise BctError(
            f"class {empty} has no image, so it has no mean",
            "number the classes 0, 1, ... without gaps (tools/folder_to_rec.py does)",
        )
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64)
    for rows, x in row_blocks(features):
        x = _prepared(x, scale, unit)
        sums.index_add_(0, torch.from_numpy(labels[rows]), x.double())
    return sums, counts


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
    squares = torch.zeros(features.shape[1], dtype=torch.float64)
    for _, x in row_blocks(features):
        squares += F.normalize(x).double().square().sum(0)
    scale = squares.sqrt().float()
    scale[scale == 0] = 1.0
    sums, counts = class_sums(features, labels, scale, unit=True)
    means = sums.div_(counts[:, None]).float()
    del sums
    distance = np.empty(len(labels), np.float32)
    for rows, x in row_blocks(features):
        difference = _prepared(x, scale, True) - means[torch.from_numpy(labels[rows])]
        distance[rows] = torch.linalg.vector_norm(difference, dim=1).numpy()

    order = np.lexsort((distance, labels))  # by class, within it by distance; stable
    sizes = counts.numpy()
    first = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - first[labels[order]]
    mask = np.empty(len(labels), bool)
    mask[order] = rank < np.ceil(T * sizes)[labels[order]]
    return mask


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
    centres = (sums / counts[:, None]).float()
    directions = F.normalize(centres)
    radii, angles = np.empty(len(labels), np.float32), np.empty(len(labels), np.float32)
    for rows, x in row_blocks(features):
        x, y = F.normalize(x), torch.from_numpy(labels[rows])
        radii[rows] = torch.linalg.vector_norm(x - centres[y], dim=1).numpy()
        angles[rows] = torch.linalg.vecdot(x, directions[y]).clamp(-1, 1).acos().numpy()
    out = np.zeros(len(counts), class_statistics_dtype(features.shape[1]))
    out["centre"], out["count"] = centres.numpy(), counts.numpy()
    out["smallest_radius"], out["radius"], out["kept"] = _within_fences(radii, labels)
    _, out["angle"], _ = _within_fences(angles, labels)
    return out


def class_statistics_dtype(dim: int) -> np.dtype:
    numbers = [(name, np.float32) for name in ("radius", "smallest_radius", "angle")]
    counts = [(name, np.int64) for name in ("count", "kept")]
    return np.dtype([("centre", np.float32, (dim,)), *numbers, *counts])


def _within_fences(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """(smallest, largest, number) of each class's values after the 1.5 IQR rule."""
    values = values[np.lexsort((values, labels))]  # by class, within it ascending
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    q1, q3 = values[first + sizes // 4], values[first + 3 * sizes // 4]
    reach = np.where(sizes >= 4, np.float32(1.5) * (q3 - q1), np.float32(np.inf))
    low, high = np.repeat(q1 - reach, sizes), np.repeat(q3 + reach, sizes)
    keep = (values >= low) & (values <= high)  # never empty: q1 and q3 lie within
    smallest = np.minimum.reduceat(np.where(keep, values, np.inf), first)
    largest = np.maximum.reduceat(np.where(keep, values, -np.inf), first)
    return smallest, largest, np.add.reduceat(keep, first)


def _prepared(x: torch.Tensor, scale: torch.Tensor | None, unit: bool) -> torch.Tensor:
    x = F.normalize(x) if unit else x
    return x if scale is None else x / scale
