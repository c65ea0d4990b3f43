"""Metrics on similarity scores: verification (1:1) and identification (1:N). Pure functions, numpy.

Scores are similarities: larger means more alike.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_curve

from bct.errors import BctError

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def rate_name(rate: float) -> str:
    """1e-4 rather than 0.0001."""
    return f"{rate:.0e}".replace("e-0", "e-")


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
    allowed = [min(int(np.floor(far * len(impostor) * (1 + 1e-12))), len(impostor)) for far in fars]
    # a threshold that lets k impostors through lies just above the (k + 1)-th largest of them
    depth = min(max(allowed) + 1, len(impostor))
    top = np.sort(np.partition(impostor, len(impostor) - depth)[len(impostor) - depth :])[::-1]
    genuine = np.sort(genuine)
    points = []
    for far, k in zip(fars, allowed, strict=True):
        blocked = top[k] if k < len(top) else -np.inf
        accepted = len(genuine) - np.searchsorted(genuine, blocked, side="right")
        reached = np.count_nonzero(top > blocked) / len(impostor)
        threshold = np.nextafter(blocked, np.inf, dtype=scores.dtype)
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
    genuine, impostor = split_scores(scores, labels)
    genuine = torch.from_numpy(np.sort(genuine))
    impostor = torch.from_numpy(np.ascontiguousarray(impostor))
    # genuine pairs not above each impostor; averaging the two sides halves the ties
    below = torch.bucketize(impostor, genuine).sum(dtype=torch.int64)
    not_above = torch.bucketize(impostor, genuine, right=True).sum(dtype=torch.int64)
    lost = (int(below) + int(not_above)) / 2
    return 1.0 - lost / (len(genuine) * len(impostor))


def roc_points(
    scores: np.ndarray, labels: np.ndarray, lowest: float = 1e-6, count: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) at `count` FARs spaced evenly in the logarithm, for drawing."""
    fars = tuple(np.logspace(np.log10(lowest), 0, count))
    points = tar_at_far(scores, labels, fars)
    return np.array(fars), np.array([p.tar for p in points])


def split_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(genuine, impostor) scores. Raises BctError if either is empty or a score is NaN."""
    labels = np.asarray(labels).astype(bool)
    if not np.isfinite(scores).all():
        raise BctError(
            f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite numbers",
            "the embeddings hold NaN or inf: check the weights and the precision (--amp off)",
        )
    for name, empty in (("genuine", not labels.any()), ("impostor", labels.all())):
        if empty:
            raise BctError(
                f"there is no {name} pair, so TAR at FAR is undefined",
                "use a protocol with both kinds of pairs",
            )
    return scores[labels], scores[~labels]


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
            are asked for.
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
        BctError: a subject twice in the gallery; no mated probe.
    """
    mated, _, place = _placed(similarity, probe_subjects, gallery_subjects)
    return mated, place


def _placed(
    similarity: np.ndarray, probe_subjects: np.ndarray, gallery_subjects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mated (probes,), score of one's own subject (mated,), its rank (mated,))."""
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
    own = similarity[mated, order[position[mated]]]
    return mated, own, (similarity[mated] >= own[:, None]).sum(1)
