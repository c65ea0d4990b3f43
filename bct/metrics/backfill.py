"""Quality of new queries against a gallery that is re-extracted step by step (backfilled).

An order says which of the gallery's N items comes first; after a fraction b of the work the first
ceil(b N) hold new embeddings, the others still old ones. b = 0 is the cross test new/old, b = 1 the
self test new/new. Both galleries' scores are computed once; each point only mixes them.
bct/metrics/mixed.py measures searches of images this way, in blocks.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bct.errors import BctError
from bct.metrics.scores import probe_ranks, tar_at_far

Quality = Callable[[np.ndarray], float]  # bool (N,), what is refreshed -> quality


class Curve(NamedTuple):
    """Quality by refreshed fraction: fractions (B,), ascending from 0 to 1, and values (B,)."""

    fractions: np.ndarray
    values: np.ndarray


def refreshed(order: np.ndarray, fractions: Sequence[float] | np.ndarray) -> np.ndarray:
    """Which items hold new embeddings after each fraction of the order, bool (B, N).

    Args:
        order: int (N,), a permutation of 0..N-1.
        fractions: (B,), ascending, from 0 to 1.

    Raises:
        BctError: no permutation; fractions that do not rise from 0 to 1.
    """
    order, fractions = np.asarray(order), np.asarray(fractions, np.float64)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise BctError(
            f"the order of {len(order)} items is no permutation",
            "name each of 0..N-1 once, as order_random and order_by_distance do",
        )
    if (
        len(fractions) < 2
        or tuple(fractions[[0, -1]]) != (0, 1)
        or not (np.diff(fractions) > 0).all()
    ):
        raise BctError(
            f"the fractions are {fractions.tolist()}",
            "let them rise from 0 to 1, e.g. numpy.linspace(0, 1, 11)",
        )
    # 0.07 * 100 is a little more than 7 in floating point
    counts = np.ceil(fractions * len(order) * (1 - 1e-12)).astype(np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place < counts[:, None]


def curve(order: np.ndarray, fractions: Sequence[float] | np.ndarray, quality: Quality) -> Curve:
    """Quality after each fraction of the order is refreshed.

        value_b = quality(the first ceil(b N) of the order)

    The subsets are nested. The ends call `quality` with nothing and with everything refreshed, so
    they are the cross and the self test exactly.

    Args:
        order: int (N,), a permutation of 0..N-1.
        fractions: ascending, from 0 to 1.
        quality: e.g. pair_quality or search_quality.

    Raises:
        BctError: what `refreshed` refuses; a quality of NaN.
    """
    fractions = np.asarray(fractions, np.float64)
    values = np.array([quality(rows) for rows in refreshed(order, fractions)])
    if np.isnan(values).any():
        raise BctError(
            f"the quality is NaN at fraction {fractions[np.isnan(values)][0]:g}",
            "check what measures it",
        )
    return Curve(fractions, values)


def refreshed_in_batches(
    n: int, fractions: Sequence[float] | np.ndarray, batch: int = 16, seed: int = 100
) -> np.ndarray:
    """Which items hold new embeddings after each fraction, as AdvBCT's code chooses, bool (B, n).

    Whole batches of the gallery's order, int(fraction * batches) of them, drawn anew from the same
    seed for every fraction: they are not nested as a rule, so more work may undo what was done, and
    the share of items is not the fraction. `refreshed` is what a deployment does.
    """
    batches = -(-n // batch)
    out = np.zeros((len(fractions), n), bool)
    for row, fraction in zip(out, fractions, strict=True):
        stream = random.Random(seed)  # noqa: S311 - the published code's, so that these are its subsets
        for chosen in stream.sample(range(batches), int(fraction * batches)):
            row[chosen * batch : (chosen + 1) * batch] = True
    return out


def area(points: Curve) -> float:
    """Integral of the quality over b = 0..1 by trapezoids, in the unit of the quality."""
    steps, values = np.diff(points.fractions), points.values
    return float(np.sum(steps * (values[1:] + values[:-1]) / 2))


def published_mean(points: Curve) -> float:
    """Mean of the points, FastFill's (Jaeckle et al., ICLR 2023) figure for the area.

    Its code refreshes floor(b N) items instead of ceil(b N). On evenly spaced points the two ends
    weigh nearly twice as much as in area.
    """
    return float(points.values.mean())


class Violations(NamedTuple):
    """Where more work makes it worse, Hot-Refresh's model regression (Zhang et al., ICLR 2022).

    steps: number of steps that fall; lost: what these fall together; drawdown: the deepest fall
    from any earlier point. The last two >= 0, in the unit of the quality.
    """

    steps: int
    lost: float
    drawdown: float


def violations(points: Curve) -> Violations:
    """Falls of a curve that ought to rise; all 0 where it never falls."""
    values = points.values
    falls = -np.minimum(np.diff(values), 0)
    deepest = (np.maximum.accumulate(values) - values).max()
    return Violations(int(np.count_nonzero(falls)), float(falls.sum()), float(deepest))


def figures(points: Curve) -> dict:
    """area, published_mean and violations, as JSON has them."""
    return {
        "area": area(points),
        "published_mean": published_mean(points),
        "violations": violations(points)._asdict(),
    }


class Regressions(NamedTuple):
    """What single queries lose at each point of a backfill, shares of the queries, float64 (B,).

    negative_flips: right at the first point, wrong now; positive_flips: the other way round. Right
    is who has a positive as its first item. ap_drops: whose average precision is below that at the
    first point.
    """

    negative_flips: np.ndarray
    positive_flips: np.ndarray
    ap_drops: np.ndarray


def regressions(ap: np.ndarray, rank: np.ndarray) -> Regressions:
    """Of queries against a gallery that is refreshed step by step.

    Args:
        ap: float (B, Q); rank: int (B, Q): those of bct.metrics.retrieval.Retrieval at each point,
            of the same queries. Those that are counted apart there are left out here.

    Raises BctError for shapes that differ, or no query that counts.
    """
    ap, rank = np.asarray(ap, np.float64), np.asarray(rank)
    _check_shapes(ap, rank)
    counts = (rank > 0).all(axis=0)
    if not counts.any():
        raise BctError("no query has a positive at every point", "check the labels of both sides")
    ap, right = ap[:, counts], rank[:, counts] == 1
    shares = (right[0] & ~right, ~right[0] & right, ap < ap[0])
    return Regressions(*(share.mean(axis=1) for share in shares))


def smallest_fraction(points: Curve, target: float, eps: float = 0.0) -> float | None:
    """Smallest fraction on the curve whose quality is at least target - eps; None if there is none.

    First reached: the curve may fall below it again, see violations and lasting_fraction. With
    target = M(n,n) it is the work after which nothing more than eps is left to gain.
    """
    reached = np.flatnonzero(points.values >= target - eps)
    return float(points.fractions[reached[0]]) if len(reached) else None


def lasting_fraction(points: Curve, target: float, eps: float = 0.0) -> float | None:
    """Smallest fraction from which on the quality is at least target - eps; None if there is none.

    Who stops there, or goes on, is nowhere below it: what may be recommended.
    """
    below = np.flatnonzero(points.values < target - eps)
    first = below[-1] + 1 if len(below) else 0
    return float(points.fractions[first]) if first < len(points.fractions) else None


class PairPoint(NamedTuple):
    """Pairs at one point of a backfill.

    tar, threshold: at the target FAR, with the threshold set anew for it.
    kept_tar, kept_far: at the deployed threshold, which stays.
    """

    tar: float
    threshold: float
    kept_tar: float
    kept_far: float


def pair_point(scores: np.ndarray, genuine: np.ndarray, far: float, deployed: float) -> PairPoint:
    """What scores of pairs reach, of mixed_scores or of any other gallery.

    Args:
        scores: float (P,); genuine: bool (P,); far: false-accept rate, 0..1.
        deployed: the threshold that was set for the old system.

    Raises BctError: what metrics.tar_at_far refuses.
    """
    anew = tar_at_far(scores, genuine, (far,))[0]
    # float64: see flips.threshold_drift
    accepted = scores >= np.float64(deployed)
    both, same, true = map(np.count_nonzero, (accepted, genuine, accepted & genuine))
    return PairPoint(anew.tar, anew.threshold, true / same, (both - true) / (len(genuine) - same))


def mixed_scores(
    cross_scores: np.ndarray,
    self_scores: np.ndarray,
    gallery_row: np.ndarray,
    refreshed: np.ndarray,
) -> np.ndarray:
    """Each pair's score by whichever embedding its gallery side holds, float (P,).

    Args: see pair_quality; refreshed: bool (N,), which gallery items hold new embeddings.
    """
    return np.where(refreshed[gallery_row], self_scores, cross_scores)


def pair_quality(
    cross_scores: np.ndarray,
    self_scores: np.ndarray,
    gallery_row: np.ndarray,
    genuine: np.ndarray,
    far: float,
) -> Quality:
    """TAR at FAR of pairs, a pair being scored by whichever embedding its gallery side holds.

    One threshold serves refreshed and stale items: scores that differ in scale between the two cost
    accuracy half-way, as they do in a deployment.

    Args:
        cross_scores, self_scores: float (P,), new queries against the old and the new gallery.
        gallery_row: int (P,), the gallery item of each pair, 0..N-1.
        genuine: bool (P,); far: false-accept rate, 0..1.

    Raises:
        BctError: numbers of pairs that differ; at each point, what metrics.tar_at_far refuses.
    """
    _check_shapes(cross_scores, self_scores, gallery_row, genuine)

    def quality(refreshed: np.ndarray) -> float:
        scores = mixed_scores(cross_scores, self_scores, gallery_row, refreshed)
        return tar_at_far(scores, genuine, (far,))[0].tar

    return quality


def search_quality(
    cross_similarity: np.ndarray,
    self_similarity: np.ndarray,
    probe_subjects: np.ndarray,
    gallery_subjects: np.ndarray,
) -> Quality:
    """Share of mated probes whose subject is strictly first, as metrics.identification counts.

    Args:
        cross_similarity, self_similarity: float (Q, G), new queries against the old and the new
            gallery, whose columns are the items to refresh.
        probe_subjects: (Q,); gallery_subjects: (G,), each at most once.

    Raises:
        BctError: shapes that differ; at each point, what metrics.probe_ranks refuses.
    """
    _check_shapes(cross_similarity, self_similarity)

    def quality(refreshed: np.ndarray) -> float:
        similarity = np.where(refreshed, self_similarity, cross_similarity)
        return float(np.mean(probe_ranks(similarity, probe_subjects, gallery_subjects)[1] == 1))

    return quality


def _check_shapes(*arrays: np.ndarray) -> None:
    shapes = [np.shape(a) for a in arrays]
    if len(set(shapes)) > 1:
        raise BctError(
            f"the arrays are {', '.join(map(str, shapes))}",
            "give the scores of the cross and the self test, and what describes them, in one order",
        )
