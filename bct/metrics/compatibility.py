"""Is an upgraded embedding model backward-compatible, and by how much?

M is any quality in one unit (TAR, mAP, ...), larger is better:

    old     M(o,o)  old queries, old gallery          cross     M(n,o)  new queries, old gallery
    self_   M(n,n)  new queries, new gallery          alone     M(*,*)  the new network trained
                                                                        without compatibility
"""

import math
from collections.abc import Sequence
from statistics import fmean, harmonic_mean

import numpy as np

from bct.errors import BctError

PerDataSet = float | Sequence[float] | np.ndarray


def compatible(cross: float, old: float) -> bool:
    """M(n,o) > M(o,o), the empirical criterion of BCT (Shen et al., CVPR 2020)."""
    return bool(cross > old)


def update_gain(cross: float, old: float, alone: float) -> float:
    """(M(n,o) - M(o,o)) / (M(*,*) - M(o,o)): 0 is the old model, 1 the one alone (BCT, CVPR 2020).

    NaN unless M(*,*) > M(o,o): there is then nothing to gain.
    """
    return (cross - old) / (alone - old) if alone > old else math.nan


def price(self_: float, alone: float) -> float:
    """M(*,*) - M(n,n), in the unit of M: what the new model gives up to be compatible."""
    return alone - self_


def p_up(self_: PerDataSet, alone: PerDataSet) -> float:
    """mean over data sets of sigmoid((M(n,n) - M(*,*)) / M(*,*)); 0.5 is no loss.

    AdvBCT (Pan et al., CVPR 2023), which defines P_up, P_comp and P_1 in no code; these formulas
    were fitted to its main table and give it back. Each argument is a number or one per data set.
    NaN if some M(*,*) is not positive. Raises BctError for numbers of data sets that differ.
    """
    return fmean(_up(*row) for row in _data_sets(self_, alone))


def p_comp(cross: PerDataSet, old: PerDataSet, alone: PerDataSet) -> float:
    """mean over data sets of sigmoid(update gain); above 0.5 is compatible.

    NaN if some update gain is. Source, arguments and errors as p_up.
    """
    return fmean(_comp(*row) for row in _data_sets(cross, old, alone))


def p_1(self_: PerDataSet, cross: PerDataSet, old: PerDataSet, alone: PerDataSet) -> float:
    """mean over data sets of 2ab / (a + b), a and b being P_up and P_comp of that data set alone.

    It is not the harmonic mean of the averages. Source, arguments and errors as p_up.
    """
    return fmean(
        harmonic_mean([_up(s, p), _comp(c, o, p)])
        for s, c, o, p in _data_sets(self_, cross, old, alone)
    )


def _up(self_: float, alone: float) -> float:
    return _sigmoid((self_ - alone) / alone) if alone > 0 else math.nan


def _comp(cross: float, old: float, alone: float) -> float:
    return _sigmoid(update_gain(cross, old, alone))


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
