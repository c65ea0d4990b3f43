"""Orders of a gallery: which of its N items is re-extracted (backfilled) first."""

import numpy as np
import torch

from bct.errors import BctError
from bct.rows import any_number, unit_blocks, unit_rows
from bct.stored.class_statistics import class_sums
from bct.streams import generator


def order_random(n: int, seed: int) -> np.ndarray:
    """A permutation of n items, int64 (n,)."""
    return torch.randperm(n, generator=generator("cpu", seed, "backfill order")).numpy()


_TIES = 3  # orders that stand for all that a distance with ties leaves open
_ROUNDING = 1e-6  # a distance of unit rows in float32 below it is one of the same row


def order_by_distance(distance: np.ndarray, seed: int | None = None) -> np.ndarray:
    """Items by descending distance, int64 (N,); equal ones by index, or at random.

    Args:
        distance: float (N,), e.g. distance_to_centre, disagreement, or the log-variance that
            FastFill predicts (tools/transform_gallery.py --uncertainty).
        seed: of the random order of equal ones; None: by index.

    Raises:
        BctError: a distance that is not a number.
    """
    if np.isnan(distance).any():
        raise BctError(
            f"{np.count_nonzero(np.isnan(distance))} distances are NaN",
            "check the embeddings they come from",
        )
    descending = -np.asarray(distance, np.float64)
    if seed is None:
        return np.argsort(descending, kind="stable")
    return np.lexsort((order_random(len(descending), seed), descending))


def orders_by_distance(distance: np.ndarray) -> list[np.ndarray]:
    """The order of these distances; where there are ties, which leave it open, several with equal
    items at random. What index an item has must not decide how good an order looks."""
    if len(np.unique(distance)) == len(distance):
        return [order_by_distance(distance)]
    return [order_by_distance(distance, seed) for seed in range(_TIES)]


def distance_to_centre(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """|n(x_i) - n(sum over class y_i of n(x))| with n(x) = x / |x|, float32 (N,), in 0..2.

    A row of zeros has the distance of cosine 0, the square root of 2, and is in no sum. A row that
    is its own centre has exactly 0: rounding must not order the classes of one row.

    How badly an embedding stands for its class. Given the old embeddings mapped into the new space,
    it is the order of Ricci et al. (lambda-orthogonality, arXiv 2509.16664).

    Args:
        embeddings: float (N, D); labels: (N,), any ids.
    """
    _, labels = np.unique(labels, return_inverse=True)
    sums = class_sums(embeddings, labels, unit=True)[0]
    centres = torch.from_numpy(unit_rows(sums.numpy()))
    distance = np.empty(len(labels), np.float32)
    for rows, x in unit_blocks(embeddings):
        gap = x - centres[torch.from_numpy(labels[rows])]  # (B, D)
        apart = torch.linalg.vector_norm(gap, dim=1)
        apart = apart.where(apart > _ROUNDING, 0)
        distance[rows] = apart.where(any_number(x), 2**0.5).numpy()
    return distance


UNCERTAINTIES = ("least-confidence", "margin", "entropy")
_LOGITS = 1 << 24  # numbers held at once


def uncertainty(
    embeddings: np.ndarray,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    unit: bool = False,
    kind: str = "entropy",
) -> np.ndarray:
    """How little a model's own classifier knows what an embedding shows, float64 (N,).

    With p = softmax(W e + b), p_1 >= p_2 >= ... sorted:

        least-confidence  1 - p_1
        margin            1 - (p_1 - p_2)
        entropy           - sum_c p_c log p_c

    Hot-Refresh (Zhang et al., ICLR 2022) refreshes first what the old model is least sure of, so
    that a gallery gets better soon; its code has no order, and these are the three usual ones
    (Settles, Active Learning, 2012). Computed in float64: of sure images 1 - p_1 would round to 0.

    Args:
        embeddings: float (N, D), as the model gives them.
        weight: float (C, D), of two classes or more; bias: (C,) or None: see
            bct.models.reference_checkpoints.reference_classifier.
        unit: the classifier was trained on embeddings of length 1.
        kind: one of UNCERTAINTIES.

    Raises:
        BctError: another kind, a classifier of another width, or one of a single class.
    """
    if kind not in UNCERTAINTIES:
        raise BctError(f"there is no uncertainty {kind!r}", f"choose {', '.join(UNCERTAINTIES)}")
    classes, width = weight.shape
    if width != embeddings.shape[1] or classes < 2:
        raise BctError(
            f"the classifier is of {classes} classes and {width} dimensions, the embeddings have "
            f"{embeddings.shape[1]}",
            "give the classifier that the model was trained with, of two classes or more",
        )
    weight = weight.double()
    out = np.empty(len(embeddings))
    step = max(1, _LOGITS // classes)
    for start in range(0, len(embeddings), step):
        rows = np.asarray(embeddings[start : start + step])
        x = torch.from_numpy((unit_rows(rows) if unit else rows).astype(np.float64))
        logits = x @ weight.T
        logits = logits if bias is None else logits + bias.double()
        out[start : start + step] = _unsure(logits.log_softmax(1), kind).numpy()
    return out


def _unsure(log_p: torch.Tensor, kind: str) -> torch.Tensor:
    """(B,), from log p (B, C). 1 - p_1 is the sum of all others, which keeps its digits."""
    p = log_p.exp()
    if kind == "entropy":
        return -(p * log_p).sum(1)
    (_, second), at = (x.unbind(1) for x in p.topk(2, dim=1))
    rest = p.scatter(1, at[0][:, None], 0).sum(1)
    return rest if kind == "least-confidence" else rest + second


def disagreement(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """1 - cos(old_i, new_i) = |n(old_i) - n(new_i)|^2 / 2, float32 (N,), in 0..2.

    Computed the second way, which is exactly 0 for equal rows; 1 where either row is zeros. It
    needs the new embeddings, so it is no order that a deployment could know: it is what a predicted
    order can be held against.

    Args:
        old, new: float (N, D), of the same items.

    Raises:
        BctError: shapes that differ.
    """
    if old.shape != new.shape:
        raise BctError(
            f"the old embeddings are {old.shape}, the new ones {new.shape}",
            "give both models' embeddings of the same items, of one width",
        )
    out = np.empty(len(old), np.float32)
    for (rows, a), (_, b) in zip(unit_blocks(old), unit_blocks(new), strict=True):
        half = (a - b).square().sum(1).div(2)
        out[rows] = half.where(any_number(a) & any_number(b), 1.0).numpy()
    return out
