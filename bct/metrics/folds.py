"""insightface's verification accuracy: the best threshold of nine folds, on the tenth."""

from typing import NamedTuple

import numpy as np

from bct.errors import BctError


class Accuracy(NamedTuple):
    """10-fold accuracy, its standard deviation over folds, and the mean norm of the embeddings."""

    mean: float
    std: float
    xnorm: float


def accuracy(
    first: np.ndarray, second: np.ndarray, issame: np.ndarray, folds: int = 10
) -> Accuracy:
    """insightface's verification accuracy.

    Squared Euclidean distance of unit embeddings; per contiguous fold the threshold (0, 0.01, ...,
    3.99; same when distance < threshold) that is best on the other folds.

    Args:
        first, second: float (P, D) embeddings of the two sides of each pair, not normalised; they
            may come from two models.
        issame: bool (P,).

    Raises BctError for a single pair.
    """
    from sklearn.model_selection import KFold  # a second that only an evaluation need wait for

    if len(issame) < 2:
        raise BctError("one pair can't be cut into folds", "use a set of at least two pairs")
    xnorm = float(np.linalg.norm(np.concatenate((first, second)), axis=1).mean())
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    distance = np.square(first - second).sum(1)
    correct = (distance[:, None] < np.arange(0, 4, 0.01)) == issame[:, None]  # (P, thresholds)
    scores = []
    for train, test in KFold(min(folds, len(issame))).split(correct):
        best = int(np.argmax(correct[train].mean(0)))
        scores.append(correct[test, best].mean())
    return Accuracy(float(np.mean(scores)), float(np.std(scores)), xnorm)
