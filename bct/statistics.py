"""Per-class statistics of old embeddings, streamed from disk in blocks.

Memory stays near (C, D) float64 and float32 plus a few values per image, however many images.
"""

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


def _prepared(x: torch.Tensor, scale: torch.Tensor | None, unit: bool) -> torch.Tensor:
    x = F.normalize(x) if unit else x
    return x if scale is None else x / scale
