"""Metrics against scikit-learn, brute force and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from bct.errors import BctError
from bct.metrics.scores import auc, identification, rate_name, roc, roc_points, tar_at_far

FARS = (1e-3, 1e-2, 0.1, 0.5, 1.0)


def with_ties(seed, pairs=400):
    rng = np.random.default_rng(seed)
    labels = rng.random(pairs) < 0.2
    labels[:2] = True, False
    return (rng.integers(0, 30, pairs) + 8 * labels).astype(np.float32), labels


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_strict_is_the_best_point_of_the_full_roc_curve_below_the_target(seed):
    scores, labels = with_ties(seed)
    far, tar, _ = roc_curve(labels, scores, drop_intermediate=False)
    for point in tar_at_far(scores, labels, FARS):
        allowed = far <= point.target
        assert point.tar == pytest.approx(tar[allowed].max())
        assert point.far <= point.target
        accepted = scores >= point.threshold  # the threshold does what it promises
        assert accepted[~labels].mean() == pytest.approx(point.far)
        assert accepted[labels].mean() == pytest.approx(point.tar)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("rule", ["strict", "nearest"])
def test_both_at_once_are_each_alone(rule):
    for seed in range(20):
        scores, labels = with_ties(seed)
        want = tar_at_far(scores, labels, FARS, rule), auc(scores, labels)
        assert roc(scores, labels, FARS, rule) == want


def test_nearest_may_exceed_the_target_and_strict_may_not():
    scores = np.array([9, 8, 7, 6, 5, 4], np.float32)
    labels = np.array([1, 0, 1, 0, 0, 1])
    strict, nearest = (
        tar_at_far(scores, labels, (0.3,), rule)[0] for rule in ("strict", "nearest")
    )
    assert (strict.far, strict.tar) == (0.0, pytest.approx(1 / 3))
    assert nearest.far > 0.3
    assert nearest.tar == pytest.approx(2 / 3)


def test_a_target_that_is_a_whole_number_of_impostors_is_used_up():
    """0.3 of 10 impostors are 3, although 0.3 * 10 is not exactly 3 in floating point."""
    scores = np.arange(20, dtype=np.float32)
    labels = np.arange(20) % 2 == 0
    assert tar_at_far(scores, labels, (0.3,))[0].far == pytest.approx(0.3)


def test_perfect_and_hopeless_scores():
    labels = np.array([1, 1, 0, 0])
    assert auc(np.array([4.0, 3, 2, 1]), labels) == 1.0
    assert auc(np.array([1.0, 2, 3, 4]), labels) == 0.0
    assert auc(np.zeros(4), labels) == 0.5
    assert [p.tar for p in tar_at_far(np.zeros(4, np.float32), labels, (0.1, 1.0))] == [0.0, 1.0]


def test_roc_points_rise():
    far, tar = roc_points(*with_ties(0), lowest=1e-3, count=50)
    assert (np.diff(far) > 0).all() and (np.diff(tar) >= 0).all() and tar[-1] == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_one_kind_of_pair_is_not_enough(labels):
    for metric in (auc, tar_at_far):
        with pytest.raises(BctError, match="there is no"):
            metric(np.array([0.1, 0.2]), np.array(labels))


def test_nan_scores_are_refused():
    with pytest.raises(BctError, match="not finite"):
        auc(np.array([0.1, np.nan]), np.array([0, 1]))


def brute_force(similarity, probes, gallery, fpir):
    """Strict rule by trying every threshold."""
    nonmated = ~np.isin(probes, gallery)
    alarms = similarity[nonmated].max(1)
    best = 0.0
    for threshold in [-np.inf, *np.unique(similarity)]:
        if (alarms > threshold).mean() > fpir + 1e-12:
            continue
        found = 0
        for row, subject in zip(similarity[~nonmated], probes[~nonmated], strict=True):
            own = row[gallery == subject][0]
            found += (
                own > threshold and own > np.delete(row, np.flatnonzero(gallery == subject)).max()
            )
        best = max(best, found / (~nonmated).sum())
    return best


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_identification_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    gallery = rng.permutation(12)[:6]
    probes = np.concatenate([gallery, rng.integers(0, 12, 20)])
    if np.isin(probes, gallery).all():
        return
    similarity = rng.integers(0, 9, (26, 6)) + 4.0 * (probes[:, None] == gallery)
    fpirs = np.array([0.0, 0.1, 0.5, 1.0])
    result = identification(similarity, probes, gallery, fpirs)
    for fpir, tpir in zip(fpirs, result.tpir, strict=True):
        assert tpir == pytest.approx(brute_force(similarity, probes, gallery, fpir))
    mated = np.isin(probes, gallery)
    assert (result.mated, result.nonmated) == (mated.sum(), (~mated).sum())
    for k, hits in result.hits.items():
        own = np.array(
            [s[gallery == p][0] for s, p in zip(similarity[mated], probes[mated], strict=True)]
        )
        worst_rank = (similarity[mated] >= own[:, None]).sum(1)  # ties count against the probe
        assert hits == (worst_rank <= k).sum()


def test_published_rule_lets_one_alarm_fewer_through():
    similarity = np.array([[0.9, 0.1], [0.5, 0.2], [0.45, 0.2]])
    strict = identification(similarity, np.array([1, 8, 9]), np.array([1, 2]), np.array([0.5, 1.0]))
    nearest = identification(
        similarity, np.array([1, 8, 9]), np.array([1, 2]), np.array([0.5, 1.0]), rule="nearest"
    )
    assert strict.thresholds.tolist() == [0.45, -np.inf]
    assert nearest.thresholds.tolist() == [0.5, 0.45]


def test_identification_needs_unique_subjects_and_both_kinds_of_probes():
    one = np.ones((2, 2))
    with pytest.raises(BctError, match="subject 3 has two templates"):
        identification(one, np.array([3, 4]), np.array([3, 3]), np.array([0.1]))
    with pytest.raises(BctError, match="FPIR is undefined"):
        identification(one, np.array([3, 4]), np.array([3, 4]), np.array([0.1]))
    with pytest.raises(BctError, match="no probe"):
        identification(one, np.array([5, 6]), np.array([3, 4]), np.array([0.1]))


def test_rate_names():
    assert [rate_name(r) for r in (1e-6, 1e-1, 3e-3)] == ["1e-6", "1e-1", "3e-3"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_identification_refuses_scores_that_are_not_numbers(value):
    """A comparison with NaN says no: the probe would come first."""
    similarity = np.zeros((3, 4), np.float32)
    similarity[1, 2] = value
    with pytest.raises(BctError, match="1 scores are not finite"):
        identification(similarity, np.array([0, 1, 9]), np.arange(4), np.array([0.5]))
