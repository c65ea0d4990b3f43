"""How alike two embedding spaces are, without labels: before anyone has annotated anything."""

import numpy as np
import torch

from bct.errors import BctError
from bct.rows import BLOCK, any_number, refuse_not_finite, unit_blocks, unit_rows

_AGAIN = "check the models, then compute the embeddings again"


def procrustes_residual(new: np.ndarray, old: np.ndarray) -> float:
    """min over orthogonal R of |X_n R - X_o|_F^2 / |X_o|_F^2, X = rows of unit length.

        = (|X_n|_F^2 + |X_o|_F^2 - 2 |X_n^T X_o|_*) / |X_o|_F^2      (Schoenemann, 1966)

    with the nuclear norm |.|_*, so R itself is not needed. 0: the spaces differ by a rotation or
    reflection, which one matrix would undo; 1 - residual / 2 is the mean cosine after the best one.
    It says something only for N much larger than D: few items can always be rotated onto others.
    Items that have a row of zeros in either space are left out.

    Args:
        new, old: float (N, D), both models' embeddings of the same items.

    Returns:
        In 0..2.

    Raises:
        BctError: no item; shapes that differ; embeddings that are not numbers, or all zeros.
    """
    if new.shape != old.shape or new.ndim != 2 or not len(old):
        raise BctError(
            f"the new embeddings are {new.shape}, the old ones {old.shape}",
            "give both models' embeddings of the same items, of one width",
        )
    product = torch.zeros(old.shape[1], old.shape[1], dtype=torch.float64)  # (D, D)
    squares = torch.zeros(2, dtype=torch.float64)
    for (_, a), (_, b) in zip(unit_blocks(new), unit_blocks(old), strict=True):
        both = any_number(a) & any_number(b)
        a, b = a[both].double(), b[both].double()
        product += a.T @ b
        squares += torch.stack([a.square().sum(), b.square().sum()])
    if not squares[1]:
        raise BctError("no item has embeddings by both models: all rows are zeros", _AGAIN)
    gap = squares.sum() - 2 * torch.linalg.svdvals(product).sum()
    return max(float(gap / squares[1]), 0.0)  # rounding can take it below 0


def neighbour_overlap(
    query_a: np.ndarray,
    gallery_a: np.ndarray,
    query_b: np.ndarray,
    gallery_b: np.ndarray,
    k: int,
    exclude_self: bool = False,
) -> float:
    """Mean over queries of |top-k of system a, top-k of system b in common| / k, by cosine.

    1: both systems show the same k neighbours; two unrelated ones share k / G of them. Which of
    several equally near rows is among the k is open, but the same for equal systems. Queries whose
    row is zeros in either system have no neighbours and are left out.

    Args:
        query_a, query_b: float (Q, D_a), (Q, D_b), the same queries in either system.
        gallery_a, gallery_b: float (G, D_a), (G, D_b), the same gallery. A cross test has query and
            gallery of two models.
        k: neighbours, in 1..G, or 1..G-1 with exclude_self.
        exclude_self: query i and gallery row i are the same item, which is not its own neighbour.

    Returns:
        In 0..1.

    Raises:
        BctError: numbers of rows or columns that do not fit; k out of range; embeddings that are
            not numbers, or queries that are all zeros.
    """
    _check(query_a, gallery_a, query_b, gallery_b, k, exclude_self)
    galleries = [unit_rows(gallery) for gallery in (gallery_a, gallery_b)]
    for gallery in galleries:
        refuse_not_finite(gallery)
    galleries = [torch.from_numpy(gallery) for gallery in galleries]
    # similarities (B, G) and comparisons (B, k, k) stay within 256 and 64 MiB
    block = max(1, min(BLOCK, (1 << 26) // max(len(gallery_a), k * k)))
    common = queries = 0
    for (rows, a), (_, b) in zip(
        unit_blocks(query_a, block=block), unit_blocks(query_b, block=block), strict=True
    ):
        tops, both = [], any_number(a) & any_number(b)
        for x, gallery in zip((a, b), galleries, strict=True):
            similarity = x @ gallery.T  # (B, G)
            if exclude_self:
                similarity[:, rows].fill_diagonal_(-torch.inf)
            tops.append(similarity.topk(k, sorted=False).indices)  # (B, k)
        common += int((tops[0][:, :, None] == tops[1][:, None, :])[both].sum())
        queries += int(both.sum())
    if not queries:
        raise BctError("no query has embeddings by both systems: all rows are zeros", _AGAIN)
    return common / (queries * k)


def _check(query_a, gallery_a, query_b, gallery_b, k, exclude_self) -> None:
    fits = (
        query_a.shape[1] == gallery_a.shape[1]
        and query_b.shape[1] == gallery_b.shape[1]
        and len(query_a) == len(query_b) > 0
        and len(gallery_a) == len(gallery_b)
        and (len(query_a) == len(gallery_a) or not exclude_self)
    )
    if not fits:
        shapes = ", ".join(str(x.shape) for x in (query_a, gallery_a, query_b, gallery_b))
        raise BctError(
            f"queries and galleries of the two systems are {shapes}",
            "give the same queries and gallery rows to both; query and gallery of one system have "
            "one width, and as many rows with exclude_self",
        )
    if not 1 <= k <= len(gallery_a) - exclude_self:
        raise BctError(
            f"k is {k}, the gallery has {len(gallery_a)} rows",
            "ask for at least one and no more neighbours than there are",
        )
