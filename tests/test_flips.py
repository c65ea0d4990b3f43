"""Flips and threshold drift against counts pair by pair and cases worked out by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.metrics.flips import (
    Flips,
    flipped,
    flips,
    hits,
    right_at_far,
    threshold_drift,
    verification_flips,
)
from bct.metrics.scores import identification, probe_ranks, tar_at_far

DECISIONS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50)


def scores_of_two_systems(seed, pairs=300):
    """Scores with ties, the new ones on another scale; about a fifth of the pairs are genuine."""
    rng = np.random.default_rng(seed)
    genuine = rng.random(pairs) < 0.2
    genuine[:2] = True, False
    old = rng.integers(0, 30, pairs) + 8 * genuine
    new = 2 * (rng.integers(0, 30, pairs) + 12 * genuine)
    return old.astype(np.float32), new.astype(np.float32), genuine


def test_flips_by_hand():
    old = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    new = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0], bool)
    result = flips(old, new)
    assert result == Flips(both_right=5, negative=1, positive=2, both_wrong=2)
    assert (result.total, result.negative_rate, result.positive_rate) == (10, 0.1, 0.2)
    assert result.relative == pytest.approx(0.1 / (0.6 * 0.3))
    assert [np.flatnonzero(mask).tolist() for mask in flipped(old, new)] == [[5], [6, 7]]


@given(decisions=DECISIONS)
def test_the_accuracy_changes_by_positive_less_negative_rate_exactly(decisions):
    old, new = np.array(decisions).T
    result = flips(old, new)
    rates = Fraction(result.positive, result.total) - Fraction(result.negative, result.total)
    assert rates == Fraction(int(new.sum()), len(new)) - Fraction(int(old.sum()), len(old))
    assert result.positive_rate - result.negative_rate == pytest.approx(new.mean() - old.mean())
    assert result.negative == sum(o and not n for o, n in decisions)
    assert result.both_wrong == sum(not o and not n for o, n in decisions)
    back = flips(new, old)  # the other direction swaps the two
    assert (back.negative, back.positive) == (result.positive, result.negative)


@given(decisions=DECISIONS)
def test_a_system_never_flips_against_itself(decisions):
    old, _ = np.array(decisions).T
    same = flips(old, old)
    assert (same.negative, same.positive, same.total) == (0, 0, len(old))
    assert same.relative == 0 if 0 < old.sum() < len(old) else math.isnan(same.relative)


def test_independent_errors_have_a_relative_rate_of_one():
    old, new = np.meshgrid(np.arange(10) < 7, np.arange(5) < 4)
    assert flips(old.ravel(), new.ravel()).relative == pytest.approx(1)


def test_decisions_that_do_not_fit():
    for old, new in (([], []), ([True], [True, False]), ([[True]], [[True]])):
        with pytest.raises(BctError, match="one decision per item"):
            flips(np.array(old, bool), np.array(new, bool))


def accepted_by_brute_force(scores, genuine, far):
    """Accepted pairs at the candidate threshold that accepts most without exceeding the FAR."""
    best = np.zeros(len(scores), bool)
    for threshold in np.unique(scores):
        accepted = scores >= threshold
        if accepted[~genuine].mean() <= far + 1e-12 and accepted.sum() > best.sum():
            best = accepted
    return best


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), far=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_verification_flips_against_brute_force(seed, far):
    old, new, genuine = scores_of_two_systems(seed)
    before, after = (accepted_by_brute_force(s, genuine, far) for s in (old, new))
    result = verification_flips(old, new, genuine, far)
    for kind, yes in ((result.genuine, genuine), (result.impostor, ~genuine)):
        right = (before[yes], after[yes]) if kind is result.genuine else (~before[yes], ~after[yes])
        assert kind.negative == (right[0] & ~right[1]).sum()
        assert kind.positive == (~right[0] & right[1]).sum()
        assert kind.total == yes.sum()
    negative, positive = flipped(*(right_at_far(s, genuine, far) for s in (old, new)))
    assert (negative & genuine).sum() == result.genuine.negative
    assert (positive & ~genuine).sum() == result.impostor.positive
    gain = tar_at_far(new, genuine, (far,))[0].tar - tar_at_far(old, genuine, (far,))[0].tar
    assert result.genuine.positive_rate - result.genuine.negative_rate == pytest.approx(gain)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_monotone_change_of_scores_flips_nothing_but_drifts(seed):
    old, _, genuine = scores_of_two_systems(seed)
    for kind in verification_flips(old, 3 * old + 7, genuine, 0.1):
        assert (kind.negative, kind.positive) == (0, 0)
    (drift,) = threshold_drift(old, 3 * old + 7, genuine, (0.1,))
    assert drift.new.far > 0.1 >= drift.restored.far
    assert drift.restored.tar == drift.old.tar


def test_ranks_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.8], [0.1, 0.2, 0.3]])
    probes, gallery = np.array([7, 5, 4, 5]), np.array([7, 5, 3])
    mated, ranks = probe_ranks(similarity, probes, gallery)
    assert mated.tolist() == [True, True, False, True]
    assert ranks.tolist() == [1, 2, 2]  # the second probe ties with subject 7
    assert hits(similarity, probes, gallery).tolist() == [True, False, False]
    assert hits(similarity, probes, gallery, k=2).tolist() == [True, True, True]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_ranks_against_brute_force_and_identification(seed):
    rng = np.random.default_rng(seed)
    gallery = rng.permutation(12)[:6]
    probes = np.concatenate([gallery[:1], rng.integers(0, 12, 25)])
    similarity = rng.integers(0, 9, (26, 6)) + 2.0 * (probes[:, None] == gallery)
    mated, ranks = probe_ranks(similarity, probes, gallery)
    assert mated.tolist() == [p in gallery for p in probes]
    expected = []
    for row, probe in zip(similarity, probes, strict=True):
        if probe in gallery:
            at = gallery.tolist().index(probe)
            expected.append(1 + sum(row[i] >= row[at] for i in range(6) if i != at))
    assert ranks.tolist() == expected
    counted = identification(similarity, probes, gallery, np.zeros(0), ranks=(1, 3))
    assert counted.hits == {k: hits(similarity, probes, gallery, k).sum() for k in (1, 3)}


def test_drift_by_hand():
    genuine = np.array([1, 1, 0, 0, 0, 0], bool)
    old = np.array([0.9, 0.3, 0.5, 0.4, 0.2, 0.1], np.float32)
    new = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1], np.float32)
    (drift,) = threshold_drift(old, new, genuine, (0.25,))
    assert 0.4 < drift.old.threshold <= 0.5  # one of four impostors may pass
    assert (drift.old.far, drift.old.tar) == (0.25, 0.5)
    assert (drift.new.far, drift.new.tar) == (0.75, 1.0)
    assert drift.new.threshold == drift.old.threshold
    assert drift.far_ratio == 3
    assert (drift.restored.far, drift.restored.tar) == (0.25, 1.0)
    assert 0.6 < drift.restored.threshold <= 0.7


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_drift_against_counts(seed):
    old, new, genuine = scores_of_two_systems(seed)
    fars = (0.0, 0.03, 0.3)
    for far, drift in zip(fars, threshold_drift(old, new, genuine, fars), strict=True):
        t = drift.old.threshold
        for scores, point in ((old, drift.old), (new, drift.new)):
            assert point.far == pytest.approx((scores[~genuine] >= t).mean())
            assert point.tar == pytest.approx((scores[genuine] >= t).mean())
            assert point.target == far
        assert drift.restored == tar_at_far(new, genuine, (far,))[0]
        ratio = drift.new.far / drift.old.far if drift.old.far else math.nan
        assert drift.far_ratio == pytest.approx(ratio, nan_ok=True)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_equal_scores_neither_flip_nor_drift(seed):
    old, _, genuine = scores_of_two_systems(seed)
    for kind in verification_flips(old, old, genuine, 0.1):
        assert (kind.negative, kind.positive) == (0, 0)
    for drift in threshold_drift(old, old, genuine, (0.1, 0.5)):
        assert drift.old == drift.new == drift.restored
        assert drift.far_ratio == 1 or (drift.old.far == 0 and math.isnan(drift.far_ratio))


def test_a_threshold_of_other_precision_is_not_rounded():
    """The strict threshold lies one step above a score; in float32 that step would vanish."""
    genuine = np.array([True, False, False])
    old = np.array([1.0, 0.5, 0.25])
    (drift,) = threshold_drift(old, old.astype(np.float32), genuine, (0.0,))
    assert drift.old.threshold > 0.5 == np.float32(drift.old.threshold)
    assert drift.new.far == 0


def test_a_score_at_the_threshold_is_accepted():
    genuine = np.array([True, False, False])
    old = np.array([1.0, 0.5, 0.25], np.float32)
    new = np.array([np.nextafter(old[1], np.float32(1)), old[1], 0.25], np.float32)
    (drift,) = threshold_drift(old, new, genuine, (0.0,))
    assert drift.new.threshold == new[0]
    assert (drift.new.far, drift.new.tar) == (0, 1)


def test_scores_of_other_pairs_are_refused():
    scores, genuine = np.arange(4.0), np.array([True, False, True, False])
    for old, new in ((scores, scores[:3]), (scores[:3], scores)):
        with pytest.raises(BctError, match="same pairs"):
            verification_flips(old, new, genuine, 0.1)
        with pytest.raises(BctError, match="same pairs"):
            threshold_drift(old, new, genuine, (0.1,))
