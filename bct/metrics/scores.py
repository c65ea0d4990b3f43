"""Metrics on similarity scores: verification (1:1) and identification (1:N). Pure functions, numpy.

Scores are similarities: larger means more alike.
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_curve

from bct.errors import BctError

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def rate_name(rate: float) -> str:
    """1e-4 rather than 0.0001."""
    return f"{rate:.0e}".replace("e-0", "e-")


def check_far(far: float) -> None:
    """Raises BctError for a FAR that is not one of FARS, which the tables have."""
    if far not in FARS:
        raise BctError(
            f"--far {far:g} is not a FAR of the tables",
            f"choose from {', '.join(map(rate_name, FARS))}",
        )


class OperatingPoint(NamedTuple):
    """TAR at a target FAR: the FAR that is really reached, and the threshold (accept >= it)."""

    target: float
    tar: float
    far: float
    threshold: float


def tar_at_far(
    scores: np.ndarray, labels: np.ndarray, fars: tuple[float, ...] = FARS, rule: str = "strict"
) -> list[OperatingPoint]:
    """True-accept rate of genuine pairs at given false-accept rates of impostor pairs.

    Args:
        scores: float (P,).
        labels: (P,), 1 for genuine pairs, 0 for impostors.
        fars: targets.
        rule: "strict" is the highest TAR whose FAR does not exceed the target. "nearest" is the
            published rule: the point of scikit-learn's thinned ROC curve with the nearest FAR,
            which may lie above the target.

    Raises:
        BctError: no genuine pair, no impostor pair, or scores that are not numbers.
    """
    genuine, impostor = split_scores(scores, labels)
    if rule == "nearest":
        return _nearest(scores, labels, fars)
    # a threshold that lets k impostors through lies just above the (k + 1)-th largest of them
    depth = min(max(_allowed(fars, len(impostor))) + 1, len(impostor))
    top = np.sort(np.partition(impostor, len(impostor) - depth)[len(impostor) - depth :])
    return _strict(np.sort(genuine), top, len(impostor), fars)


def _allowed(fars: tuple[float, ...], impostors: int) -> list[int]:
    return [min(int(np.floor(far * impostors * (1 + 1e-12))), impostors) for far in fars]


def _strict(
    genuine: np.ndarray, top: np.ndarray, impostors: int, fars: tuple[float, ...]
) -> list[OperatingPoint]:
    """Operating points of ascending genuine scores and the ascending largest of the impostors'."""
    points = []
    for far, k in zip(fars, _allowed(fars, impostors), strict=True):
        blocked = top[-1 - k] if k < len(top) else -np.inf
        accepted = len(genuine) - np.searchsorted(genuine, blocked, side="right")
        reached = (len(top) - np.searchsorted(top, blocked, side="right")) / impostors
        threshold = np.nextafter(blocked, np.inf, dtype=genuine.dtype)
        points.append(
            OperatingPoint(far, accepted / len(genuine), float(reached), float(threshold))
        )
    return points


def _nearest(scores, labels, fars) -> list[OperatingPoint]:
    false, true, thresholds = roc_curve(labels, scores)
    # reversed, so that among equally near points the one with the larger FAR and TAR is first
    false, true, thresholds = false[::-1], true[::-1], thresholds[::-1]
    points = []
    for far in fars:
        i = int(np.argmin(np.abs(false - far)))
        points.append(OperatingPoint(far, float(true[i]), float(false[i]), float(thresholds[i])))
    return points


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a genuine pair scores above an impostor pair,
    ties counting one half. Raises BctError as tar_at_far."""
    return _auc(*map(np.sort, split_scores(scores, labels)))


def _auc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """The same of ascending scores."""
    pairs = len(genuine) * len(impostor)
    # impostors below each genuine pair; averaging the two sides halves the ties
    below = np.searchsorted(impostor, genuine, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(impostor, genuine, side="right").sum(dtype=np.int64)
    return 1.0 - (pairs - (int(below) + int(not_above)) / 2) / pairs


def roc(
    scores: np.ndarray, labels: np.ndarray, fars: tuple[float, ...] = FARS, rule: str = "strict"
) -> tuple[list[OperatingPoint], float]:
    """tar_at_far and auc of the same scores; together they need one sort."""
    genuine, impostor = map(np.sort, split_scores(scores, labels))
    if rule == "nearest":
        points = _nearest(scores, labels, fars)
    else:
        points = _strict(genuine, impostor, len(impostor), fars)
    return points, _auc(genuine, impostor)


def roc_points(
    scores: np.ndarray, labels: np.ndarray, lowest: float | None = None, count: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) at `count` FARs spaced evenly in the logarithm, for drawing.

    Args:
        lowest: the first of them; None: one pair of all, or 1e-6 if that is more.
    """
    lowest = lowest or max(1 / len(scores), 1e-6)
    fars = tuple(np.logspace(np.log10(lowest), 0, count))
    points = tar_at_far(scores, labels, fars)
    return np.array(fars), np.array([p.tar for p in points])


def split_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(genuine, impostor) scores. Raises BctError if either is empty or a score is NaN."""
    labels = np.asarray(labels).astype(bool)
    if not np.isfinite(scores).all():
        raise _not_finite(scores)
    for name, empty in (("genuine", not labels.any()), ("impostor", labels.all())):
        if empty:
            raise BctError(
                f"there is no {name} pair, so TAR at FAR is undefined",
                "use a protocol with both kinds of pairs",
            )
    return scores[labels], scores[~labels]


def _not_finite(scores: np.ndarray) -> BctError:
    return BctError(
        f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite numbers",
        "the embeddings hold NaN or inf: check the weights and the precision (--amp off)",
    )


class Identification(NamedTuple):
    """1:N result of one gallery.

    hits: number of mated probes whose subject is among the best k, per k.
    mated, nonmated: numbers of probes with and without their subject in the gallery.
    tpir, thresholds: per target FPIR.
    """

    hits: dict[int, int]
    mated: int
    nonmated: int
    tpir: np.ndarray
    thresholds: np.ndarray


def identification(
    similarity: np.ndarray,
    probe_subjects: np.ndarray,
    gallery_subjects: np.ndarray,
    fpirs: np.ndarray,
    ranks: tuple[int, ...] = (1, 5, 10),
    rule: str = "strict",
) -> Identification:
    """Closed-set ranks and open-set TPIR at FPIR.

    A mated probe is identified at a threshold when its subject is first, strictly before every
    other, and scores above the threshold. A non-mated probe raises a false alarm when its best
    score exceeds it.

    Args:
        similarity: float (probes, gallery).
        probe_subjects: (probes,); gallery_subjects: (gallery,), each at most once.
        fpirs: targets, ascending.
        rule: "strict" lets at most floor(n * fpir) of the n non-mated probes raise an alarm.
            "nearest" is the published rule, which lets one fewer.

    Raises:
        BctError: a subject twice in the gallery; no mated probe; no non-mated probe while FPIRs
            are asked for; scores that are not numbers.
    """
    mated, own, place = _placed(similarity, probe_subjects, gallery_subjects)
    hits = {k: int((place <= k).sum()) for k in ranks}
    first = place == 1
    if len(fpirs) == 0:
        return Identification(hits, int(mated.sum()), int((~mated).sum()), np.zeros(0), np.zeros(0))

    if mated.all():
        raise BctError(
            "every probe's subject is in the gallery, so FPIR is undefined",
            "use a gallery that leaves some subjects out",
        )
    alarms = np.sort(similarity[~mated].max(1))[::-1]
    thresholds = []
    for fpir in fpirs:
        if rule == "nearest":
            thresholds.append(alarms[max(int(len(alarms) * fpir) - 1, 0)])
        else:
            k = int(np.floor(fpir * len(alarms) * (1 + 1e-12)))
            thresholds.append(alarms[k] if k < len(alarms) else -np.inf)
    tpir = np.array([np.mean(first & (own > t)) for t in thresholds])
    counts = int(mated.sum()), int((~mated).sum())
    return Identification(hits, *counts, tpir, np.array(thresholds))


def probe_ranks(
    similarity: np.ndarray, probe_subjects: np.ndarray, gallery_subjects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At which place each mated probe's subject comes in the gallery.

        rank = number of gallery subjects that score at least as high as one's own, itself included

    so 1 is strictly first, and ties count against the probe.

    Args:
        similarity: float (probes, gallery).
        probe_subjects: (probes,); gallery_subjects: (gallery,), each at most once.

    Returns:
        bool (probes,), whether the probe's subject is in the gallery; and the ranks, int64 (mated,)
        in 1..gallery, in the order of the probes.

    Raises:
        BctError: a subject twice in the gallery; no mated probe; scores that are not numbers.
    """
    mated, _, place = _placed(similarity, probe_subjects, gallery_subjects)
    return mated, place


def _placed(
    similarity: np.ndarray, probe_subjects: np.ndarray, gallery_subjects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mated (probes,), score of one's own subject (mated,), its rank (mated,))."""
    if not np.isfinite(similarity.sum(dtype=np.float64)):  # comparisons with NaN say no
        raise _not_finite(similarity)
    order = np.argsort(gallery_subjects, kind="stable")
    subjects = gallery_subjects[order]
    if (subjects[1:] == subjects[:-1]).any():
        twice = subjects[1:][subjects[1:] == subjects[:-1]][0]
        raise BctError(
            f"subject {twice} has two templates in one gallery", "keep one template per subject"
        )
    position = np.minimum(np.searchsorted(subjects, probe_subjects), len(subjects) - 1)
    mated = subjects[position] == probe_subjects
    if not mated.any():
        raise BctError("no probe's subject is in the gallery", "check the gallery and probe files")
    rows = np.flatnonzero(mated)
    own = similarity[rows, order[position[rows]]]
    place = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), 1 << 7):  # so few that their comparisons stay in the cache
        some = slice(start, start + (1 << 7))
        place[some] = (similarity[rows[some]] >= own[some, None]).sum(1)
    return mated, own, place
