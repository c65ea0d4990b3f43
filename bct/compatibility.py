"""Is an upgraded embedding model backward-compatible, and by how much?

M is any quality in one unit (TAR, mAP, ...), larger is better:

    old     M(o,o)  old queries, old gallery          cross     M(n,o)  new queries, old gallery
    self_   M(n,n)  new queries, new gallery          paragon   M(*,*)  a new model trained freely
"""

import math
from collections.abc import Sequence
from statistics import fmean, harmonic_mean
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

from bct.distributed import generator
from bct.errors import BctError
from bct.metrics import tar_at_far

_CHUNK = 1 << 22  # weights of pairs held at once
PerDataSet = float | Sequence[float] | np.ndarray


def compatible(cross: float, old: float) -> bool:
    """M(n,o) > M(o,o), the empirical criterion of BCT (Shen et al., CVPR 2020)."""
    return bool(cross > old)


def update_gain(cross: float, old: float, paragon: float) -> float:
    """(M(n,o) - M(o,o)) / (M(*,*) - M(o,o)): 0 is the old model, 1 the paragon (BCT, CVPR 2020).

    NaN unless M(*,*) > M(o,o): there is then nothing to gain.
    """
    return (cross - old) / (paragon - old) if paragon > old else math.nan


def price(self_: float, paragon: float) -> float:
    """M(*,*) - M(n,n), in the unit of M: what the new model gives up to be compatible."""
    return paragon - self_


def p_up(self_: PerDataSet, paragon: PerDataSet) -> float:
    """mean over data sets of sigmoid((M(n,n) - M(*,*)) / M(*,*)); 0.5 is no loss.

    AdvBCT (Pan et al., CVPR 2023), which defines P_up, P_comp and P_1 in no code; these formulas
    were fitted to its main table and give it back. Each argument is a number or one per data set.
    NaN if some M(*,*) is not positive. Raises BctError for numbers of data sets that differ.
    """
    return fmean(_up(*row) for row in _data_sets(self_, paragon))


def p_comp(cross: PerDataSet, old: PerDataSet, paragon: PerDataSet) -> float:
    """mean over data sets of sigmoid(update gain); above 0.5 is compatible.

    NaN if some update gain is. Source, arguments and errors as p_up.
    """
    return fmean(_comp(*row) for row in _data_sets(cross, old, paragon))


def p_1(self_: PerDataSet, cross: PerDataSet, old: PerDataSet, paragon: PerDataSet) -> float:
    """mean over data sets of 2ab / (a + b), a and b being P_up and P_comp of that data set alone.

    It is not the harmonic mean of the averages. Source, arguments and errors as p_up.
    """
    return fmean(
        harmonic_mean([_up(s, p), _comp(c, o, p)])
        for s, c, o, p in _data_sets(self_, cross, old, paragon)
    )


def _up(self_: float, paragon: float) -> float:
    return _sigmoid((self_ - paragon) / paragon) if paragon > 0 else math.nan


def _comp(cross: float, old: float, paragon: float) -> float:
    return _sigmoid(update_gain(cross, old, paragon))


def _sigmoid(x: float) -> float:
    return 0.5 + 0.5 * math.tanh(x / 2)  # exp(-x) would overflow


def _data_sets(*metrics: PerDataSet) -> list[tuple[float, ...]]:
    """One tuple per data set."""
    columns = [np.ravel(m).tolist() for m in metrics]
    if len({len(c) for c in columns}) > 1 or not columns[0]:
        raise BctError(
            f"the metrics are of {', '.join(str(len(c)) for c in columns)} data sets",
            "give every metric for the same data sets, at least one",
        )
    return list(zip(*columns, strict=True))


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap_tar_difference(
    cross: np.ndarray,
    old: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    genuine: np.ndarray,
    far: float,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """TAR(cross) - TAR(old) at `far`, averaged over seeds; percentile bootstrap over templates.

    A resample draws T of the T templates with replacement. A template drawn w times is that often
    on the first and on the second side, so

        a pair (a, b) counts w[a] w[b] times,
        TAR = highest weighted TAR whose weighted FAR does not exceed `far` ("strict"),

    for all systems on the same resample: what is common to them cancels. Resamples without a
    genuine or an impostor pair have no TAR and are drawn again. The seeds are averaged, not
    resampled: the interval is about other templates, not about other trainings. It is
    rather too wide, since weights that multiply count the variance of what is particular to a pair
    three times (Owen, The pigeonhole bootstrap, 2007): 1.3 to 2 times in simulations.

    Args:
        cross, old: float (S, P), scores of the same P pairs by S seeds.
        first, second: int (P,), the template on either side, by row number or any other id.
        genuine: bool (P,).
        far: false-accept rate, 0..1.

    Returns:
        The difference on the data, as metrics.tar_at_far has it, and its bounds; in -1..1.

    Raises:
        BctError: shapes that do not fit; what metrics.tar_at_far refuses.
    """
    cross, old, genuine = np.asarray(cross), np.asarray(old), np.asarray(genuine, bool)
    _check_shapes(cross, old, first, second, genuine)
    scores = (*cross, *old)

    def difference(tars: list) -> np.ndarray:
        return np.mean(tars[: len(cross)], axis=0) - np.mean(tars[len(cross) :], axis=0)

    estimate = difference([tar_at_far(s, genuine, (far,))[0].tar for s in scores])

    ids, rows = np.unique(np.concatenate([first, second]), return_inverse=True)
    pairs = rows.reshape(2, -1)
    systems = [_rank(s, genuine) for s in scores]
    counts = [_pair_counts(pairs[:, kind], len(ids)) for kind in (genuine, ~genuine)]
    chunk = int(np.clip(_CHUNK // len(genuine), 1, resamples))
    stream = generator("cpu", seed, "bootstrap over templates")
    differences = np.zeros(0)
    # ends: the at most four templates of one genuine and one impostor pair are all drawn in 9 % of
    # resamples or more
    while len(differences) < resamples:
        weights = _draw(len(ids), chunk, stream)
        genuines, impostors = ((weights * (count @ weights)).sum(0) for count in counts)
        valid = (genuines > 0) & (impostors > 0)
        weights, impostors = weights[:, valid], impostors[valid]
        allowed = np.floor(far * impostors * (1 + 1e-12))  # as tar_at_far
        tars = [_weighted_tar(system, pairs, weights, allowed, far) for system in systems]
        differences = np.append(differences, difference(tars))
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences[:resamples], [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high))


def _check_shapes(cross: np.ndarray, old: np.ndarray, *per_pair: np.ndarray) -> None:
    shapes = [np.shape(values) for values in per_pair]
    if (
        cross.shape != old.shape
        or {*shapes} != {cross.shape[1:]}
        or cross.ndim != 2
        or not len(old)
    ):
        raise BctError(
            f"scores are {cross.shape} and {old.shape}; templates and labels are "
            f"{', '.join(map(str, shapes))}",
            "give scores (seeds, pairs) of both systems, and one template and label per pair",
        )


class _Ranked(NamedTuple):
    """A system's pairs, best first.

    genuine (G,), impostor (I,): pair numbers by descending score.
    above: (I + 1,), number of genuine pairs above each impostor; at last G, for none blocked.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    above: np.ndarray


def _rank(scores: np.ndarray, genuine: np.ndarray) -> _Ranked:
    kinds = np.flatnonzero(genuine), np.flatnonzero(~genuine)
    best, other = (kind[np.argsort(scores[kind])[::-1]] for kind in kinds)
    not_above = np.searchsorted(scores[best[::-1]], scores[other], side="right")
    return _Ranked(best, other, np.append(len(best) - not_above, len(best)))


def _pair_counts(pairs: np.ndarray, templates: int) -> csr_matrix:
    """How often each pair of templates occurs, (T, T)."""
    ones = np.ones(pairs.shape[1], np.int64)
    return csr_matrix((ones, (pairs[0], pairs[1])), shape=(templates, templates))


def _draw(templates: int, resamples: int, stream: torch.Generator) -> np.ndarray:
    """How often each template is drawn, int64 (T, resamples)."""
    drawn = torch.randint(templates, (resamples, templates), generator=stream).numpy()
    cells = drawn * resamples + np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=templates * resamples).reshape(templates, -1)


def _weighted_tar(
    system: _Ranked, pairs: np.ndarray, weights: np.ndarray, allowed: np.ndarray, far: float
) -> np.ndarray:
    """TAR in each resample, (R,).

    Args:
        pairs: (2, P); weights: (T, R); allowed: (R,), impostors that may be accepted.
    """
    first, second = pairs

    def running(order: np.ndarray) -> np.ndarray:
        return np.cumsum(weights[first[order]] * weights[second[order]], axis=0)

    # the pairs beyond the threshold do not matter; how many do depends on the weights
    depth = int(2 * far * len(system.impostor)) + 64
    while True:
        false = running(system.impostor[:depth])
        if depth >= len(system.impostor) or (false[-1] > allowed).all():
            break
        depth *= 2
    # the first impostor that would be one too many is blocked, and with it all that score no more
    blocked = (false <= allowed).sum(0)
    true = np.pad(running(system.genuine), ((1, 0), (0, 0)))
    return true[system.above[blocked], np.arange(len(allowed))] / true[-1]
