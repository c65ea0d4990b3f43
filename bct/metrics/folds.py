"""insightface's verification accuracy: the best threshold of nine folds, on the tenth."""

from typing import NamedTuple

import numpy as np

from bct.errors import BctError
from bct.rows import lengths, unit_rows


class Accuracy(NamedTuple):
    """10-fold accuracy, its standard deviation over folds, and the mean norm of the embeddings but
    for rows of zeros."""

    mean: float
    std: float
    xnorm: float


def one_sided(issame: np.ndarray, folds: int = 10) -> bool:
    """Whether most folds of accuracy hold pairs of one kind only, of pairs bool (P,). Sets are
    meant to have genuine and impostor pairs by turns; else a fold's threshold comes from pairs
    that are unlike its own."""
    parts = np.array_split(issame, min(folds, len(issame)))
    return 2 * sum(part.all() or not part.any() for part in parts) > len(parts)


def accuracy(
    first: np.ndarray, second: np.ndarray, issame: np.ndarray, folds: int = 10
) -> Accuracy:
    """insightface's verification accuracy.

    Squared Euclidean distance of unit embeddings; per contiguous fold the threshold (0, 0.01, ...,
    3.99; same when distance < threshold) that is best on the other folds. A pair with a row of
    zeros has cosine 0, so distance 2; one that is not finite is never the same.

    Args:
        first, second: float (P, D) embeddings of the two sides of each pair, not normalised; they
            may come from two models.
        issame: bool (P,).

    Raises BctError for a single pair.
    """
    from sklearn.model_selection import KFold  # a second that only an evaluation need wait for

    if len(issame) < 2:
        raise BctError("one pair can't be cut into folds", "use a set of at least two pairs")
    length = np.stack([lengths(first), lengths(second)])
    xnorm = float(length[length > 0].mean()) if length.any() else 0.0
    first, second = unit_rows(first), unit_rows(second)
    distance = np.square(first - second).sum(1)
    distance[(length == 0).any(axis=0)] = 2
    correct = (distance[:, None] < np.arange(0, 4, 0.01)) == issame[:, None]  # (P, thresholds)
    scores = []
    for train, test in KFold(min(folds, len(issame))).split(correct):
        best = int(np.argmax(correct[train].mean(0)))
        scores.append(correct[test, best].mean())
    return Accuracy(float(np.mean(scores)), float(np.std(scores)), xnorm)
