"""What an update changes for single items: queries that were right and become wrong, pairs whose
decision flips, and what a deployed threshold does to the new scores.

old and new are two systems that are tested on the same items in the same order: usually old/old
(query / gallery) and new/old, or new against a partly refreshed gallery. Scores are similarities,
larger means more alike; a pair is accepted at threshold t when its score >= t.
"""

import math
from typing import NamedTuple

import numpy as np

from bct.errors import BctError
from bct.metrics.scores import OperatingPoint, probe_ranks, split_scores, tar_at_far


class Flips(NamedTuple):
    """How many items two systems decide rightly: every item is in one of the four counts.

    negative: right before, wrong now; positive: wrong before, right now.

        acc_new - acc_old = positive_rate - negative_rate
    """

    both_right: int
    negative: int
    positive: int
    both_wrong: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def negative_rate(self) -> float:
        """NFR = negative / total (Yan et al., Positive-Congruent Training, CVPR 2021)."""
        return self.negative / self.total

    @property
    def positive_rate(self) -> float:
        """PFR = positive / total."""
        return self.positive / self.total

    @property
    def relative(self) -> float:
        """NFR / ((1 - error_old) error_new): 1 is as many as if the two erred independently.

        NaN if the old system is never right or the new one never wrong: nothing can flip then.
        Source as negative_rate.
        """
        right_before = self.both_right + self.negative
        wrong_now = self.negative + self.both_wrong
        if right_before == 0 or wrong_now == 0:
            return math.nan
        return self.negative * self.total / (right_before * wrong_now)


def flips(old_right: np.ndarray, new_right: np.ndarray) -> Flips:
    """Counts the items that change.

    Args:
        old_right, new_right: bool (N,), what each system decides rightly, e.g. hits, right_at_far.

    Raises:
        BctError: no item, or two numbers of items.
    """
    negative, positive = flipped(old_right, new_right)
    both_right = np.logical_and(old_right, new_right)
    both, lost, won = (int(np.count_nonzero(kind)) for kind in (both_right, negative, positive))
    return Flips(both, lost, won, len(negative) - both - lost - won)


def flipped(old_right: np.ndarray, new_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which items change: (negative, positive), each bool (N,). Arguments and errors as flips."""
    old, new = np.asarray(old_right, bool), np.asarray(new_right, bool)
    if old.shape != new.shape or old.ndim != 1 or not len(old):
        raise BctError(
            f"the old system has decisions {old.shape}, the new one {new.shape}",
            "give one decision per item for the same items, at least one",
        )
    return old & ~new, ~old & new


def right_at_far(scores: np.ndarray, genuine: np.ndarray, far: float) -> np.ndarray:
    """Which pairs a system decides rightly at its own threshold: bool (P,).

    The threshold is the strict one of metrics.tar_at_far, the lowest whose FAR does not exceed
    `far`. A genuine pair is right when it is accepted, an impostor pair when it is rejected.

    Args:
        scores: float (P,); genuine: bool (P,); far: false-accept rate, 0..1.

    Raises:
        BctError: what metrics.tar_at_far refuses.
    """
    threshold = tar_at_far(scores, genuine, (far,))[0].threshold
    return _accepted(scores, threshold) == np.asarray(genuine, bool)


class VerificationFlips(NamedTuple):
    """Flips of the two kinds of pairs, which cost different things.

    genuine: negative flips are people who are rejected from now on.
    impostor: negative flips are strangers who are accepted from now on.
    """

    genuine: Flips
    impostor: Flips


def verification_flips(
    old_scores: np.ndarray, new_scores: np.ndarray, genuine: np.ndarray, far: float
) -> VerificationFlips:
    """Flips of verification pairs, each system at its own threshold for the same FAR.

    The pairs themselves: flipped(right_at_far(old_scores, ...), right_at_far(new_scores, ...)).

    Args:
        old_scores, new_scores: float (P,); genuine: bool (P,); far: false-accept rate, 0..1.

    Raises:
        BctError: numbers of pairs that differ; what metrics.tar_at_far refuses.
    """
    _check_shapes(old_scores, new_scores, genuine)
    old, new = (right_at_far(scores, genuine, far) for scores in (old_scores, new_scores))
    genuine = np.asarray(genuine, bool)
    return VerificationFlips(flips(old[genuine], new[genuine]), flips(old[~genuine], new[~genuine]))


def hits(
    similarity: np.ndarray, probe_subjects: np.ndarray, gallery_subjects: np.ndarray, k: int = 1
) -> np.ndarray:
    """Which mated probes have their subject among the best k of the gallery: bool (mated,).

    Ranks, ties, arguments and errors as metrics.probe_ranks. Which probes are mated depends on the
    subjects alone, so two systems with the same probes and gallery can be compared by flips.
    """
    return probe_ranks(similarity, probe_subjects, gallery_subjects)[1] <= k


class ThresholdDrift(NamedTuple):
    """What happens at one target FAR when the threshold stays and the scores change.

    old: the deployed point: the old scores at their own threshold.
    new: the new scores at that same threshold.
    restored: the new scores at the threshold that brings them back to the target.
    """

    old: OperatingPoint
    new: OperatingPoint
    restored: OperatingPoint

    @property
    def far_ratio(self) -> float:
        """FAR of the new over that of the old scores at the deployed threshold; 1 is no drift.

        NaN if the old scores reach FAR 0: there are too few impostors for this target.
        """
        return self.new.far / self.old.far if self.old.far > 0 else math.nan


def threshold_drift(
    old_scores: np.ndarray,
    new_scores: np.ndarray,
    genuine: np.ndarray,
    fars: tuple[float, ...],
) -> list[ThresholdDrift]:
    """FAR and TAR of new scores at the thresholds that were set for the old ones.

        t = strict threshold of the old scores for the target FAR (metrics.tar_at_far)
        new.far = share of impostor pairs with new score >= t, new.tar = the same of genuine pairs

    A gallery of stored embeddings usually comes with a stored threshold; a compatible model can
    raise TAR at equal FAR and still miss the FAR that was promised at that threshold.

    Args:
        old_scores, new_scores: float (P,), usually old/old and new/old; genuine: bool (P,).
        fars: targets, 0..1.

    Returns:
        One per target.

    Raises:
        BctError: numbers of pairs that differ; what metrics.tar_at_far refuses.
    """
    _check_shapes(old_scores, new_scores, genuine)
    same, other = split_scores(new_scores, genuine)
    deployed = tar_at_far(old_scores, genuine, fars)
    restored = tar_at_far(new_scores, genuine, fars)
    drifts = []
    for old, back in zip(deployed, restored, strict=True):
        tar, far = (float(np.mean(_accepted(kind, old.threshold))) for kind in (same, other))
        drifts.append(
            ThresholdDrift(old, OperatingPoint(old.target, tar, far, old.threshold), back)
        )
    return drifts


def _accepted(scores: np.ndarray, threshold: float) -> np.ndarray:
    # float64: a Python float would be rounded to float32 with float32 scores, and might then be the
    # blocked impostor's own score
    return scores >= np.float64(threshold)


def _check_shapes(old_scores: np.ndarray, new_scores: np.ndarray, genuine: np.ndarray) -> None:
    shapes = np.shape(old_scores), np.shape(new_scores), np.shape(genuine)
    if len(set(shapes)) > 1:
        raise BctError(
            f"old scores, new scores and labels are {', '.join(map(str, shapes))}",
            "give both scores and the label of the same pairs",
        )
