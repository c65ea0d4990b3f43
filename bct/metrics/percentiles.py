"""An interval from bootstrap replicates."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def interval(replicates: np.ndarray, estimate: float, confidence: float = 0.95) -> Interval:
    """Percentile interval: the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles.

    Args:
        replicates: float (R,), the quantity in each resample; bounds are NaN if one of them is.
        estimate: the quantity on the data.
        confidence: 0..1.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high))
