"""Average precision of a query, three ways, from the places of its positives; precision at k.

Of a query with n positives at the places r_1 < r_2 < ... of its ranking, from 1:

    steps      1/n sum_i  i / r_i                              Market-1501, and by default
    trapezoid  1/n sum_i  ((i - 1) / (r_i - 1) + i / r_i) / 2  Revisited Oxford and Paris
               (the first fraction is 1 where r_i = 1)
    first100   1/min(n, 100) sum over r_i <= 100 of  i / r_i   Google Landmarks v2

Sources: Radenovic et al., Revisiting Oxford and Paris, CVPR 2018, and its published evaluation;
Weyand et al., Google Landmarks Dataset v2, CVPR 2020, and its published metric, whose denominator
is min(n, 100), not n.
"""

import numpy as np

from bct.errors import BctError
from bct.metrics.positions import Positions

WAYS = ("steps", "trapezoid", "first100")
FIRST = 100  # items that first100 looks at


def check_way(way: str) -> None:
    """Raises BctError for a way that there is not."""
    if way not in WAYS:
        raise BctError(f"the average precision is reckoned by {way!r}", f"use {', '.join(WAYS)}")


def average_precision(positions: Positions, way: str = "steps") -> np.ndarray:
    """Of each query, float64 (Q,); NaN without positives.

    Raises BctError for an unknown way.
    """
    check_way(way)
    number, place = positions.counts(), positions.places
    found = positions.ordinals()
    terms = found / place
    if way == "trapezoid":
        before = np.divide(found - 1, place - 1, where=place > 1, out=np.ones(len(place)))
        terms = (before + terms) / 2
    if way == "first100":
        terms[place > FIRST] = 0
        number = np.minimum(number, FIRST)
    sums = np.bincount(positions.owners(), terms, len(number))
    return np.divide(sums, number, where=number > 0, out=np.full(len(number), np.nan))


def precision_at(positions: Positions, k: int, whole: bool = False) -> np.ndarray:
    """Share of positives among the first k' items, float64 (Q,); NaN without positives.

    k' = min(place of the last positive, k), as Revisited Oxford and Paris have it: a query with few
    positives can reach 1. whole: k' = k, as Google Landmarks v2 has it.
    """
    number = positions.counts()
    there = number > 0
    depth = np.full(len(number), k, np.int64)
    if not whole:
        last = positions.places[positions.offsets[1:][there] - 1]
        depth[there] = np.minimum(last, k)
    hits = np.bincount(positions.owners()[positions.places <= k], minlength=len(number))
    return np.where(there, hits / depth, np.nan)
