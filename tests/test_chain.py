"""Chain metrics against a chain worked out by hand and their definitions written as loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.metrics.chain import (
    average_compatibility,
    average_quality,
    backward_transfer,
    forward_transfer,
)

METRICS = average_compatibility, average_quality, backward_transfer, forward_transfer
NAN = float("nan")

# row: queries by that version; version 3 is no better than version 1 on the gallery of version 1
CHAIN = np.array(
    [
        [0.50, NAN, NAN],
        [0.55, 0.70, NAN],
        [0.50, 0.80, 0.90],
    ]
)


def test_a_chain_by_hand():
    assert average_compatibility(CHAIN) == pytest.approx(2 / 3)  # equal quality does not count
    assert average_quality(CHAIN) == pytest.approx(3.95 / 6)
    assert backward_transfer(CHAIN) == pytest.approx((0.00 + 0.10) / 2)
    assert forward_transfer(CHAIN) == pytest.approx((-0.15 - 0.10) / 2)


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), versions=st.integers(2, 6))
def test_against_the_definitions(seed, versions):
    m = np.random.default_rng(seed).integers(0, 4, (versions, versions)) / 4.0
    lower = [(i, j) for i in range(versions) for j in range(i + 1)]
    good = sum(m[i, j] > m[j, j] for i, j in lower if i != j)
    assert average_compatibility(m) == pytest.approx(2 * good / (versions * (versions - 1)))
    assert average_quality(m) == pytest.approx(sum(m[p] for p in lower) / len(lower))
    steps = versions - 1
    last = sum(m[-1, i] - m[i, i] for i in range(steps))
    assert backward_transfer(m) == pytest.approx(last / steps)
    next_ = sum(m[i + 1, i] - m[i + 1, i + 1] for i in range(steps))
    assert forward_transfer(m) == pytest.approx(next_ / steps)


@given(versions=st.integers(2, 6))
def test_versions_that_are_all_the_same_model(versions):
    same = np.full((versions, versions), 0.75)
    assert [metric(same) for metric in METRICS] == [0.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_lower_triangle_counts(metric):
    other = np.where(np.isnan(CHAIN), 100.0, CHAIN)
    assert metric(other) == metric(CHAIN)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4,), (0, 0)])
def test_no_chain(metric, shape):
    with pytest.raises(BctError, match="at least two versions"):
        metric(np.ones(shape))


@pytest.mark.parametrize(
    ("row", "column", "needed_by"),
    [(2, 0, METRICS[:3]), (1, 0, (METRICS[0], METRICS[1], METRICS[3])), (1, 1, METRICS)],
)
def test_an_entry_that_is_missing_is_named_where_it_is_needed(row, column, needed_by):
    hole = CHAIN.copy()
    hole[row, column] = np.nan
    for metric in METRICS:
        if metric in needed_by:
            with pytest.raises(BctError, match=rf"M\[{row}, {column}\]"):
                metric(hole)
        else:
            assert metric(hole) == metric(CHAIN)
