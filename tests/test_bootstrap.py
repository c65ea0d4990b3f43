"""Bootstrap of TARs against resamples written out, binomial laws and simulated populations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from bct.errors import BctError
from bct.metrics import bootstrap
from bct.metrics.bootstrap import bootstrap_tar
from bct.metrics.compatibility import update_gain
from bct.metrics.percentiles import Interval, interval
from bct.metrics.scores import tar_at_far
from bct.streams import generator

FARS = (0.0, 0.02, 0.1, 0.3, 1.0)


def trial(seed, units=9, pairs=60, systems=4, levels=12, kind="templates"):
    """scores, first, second, genuine; few levels make many ties."""
    rng = np.random.default_rng(seed)
    genuine = rng.random(pairs) < 0.2
    genuine[:2] = True, False
    first, second = rng.integers(0, units, (2, pairs))
    if kind == "subjects":  # same unit, same person
        first = np.where(genuine | (first != second), first, (second + 1) % units)
        second = np.where(genuine, first, second)
    elif kind == "pairs":
        first = second = np.arange(pairs)
    scores = rng.integers(0, levels, (systems, pairs)) + 4 * genuine
    return scores.astype(np.float32), first * 5 + 3, second * 5 + 3, genuine  # ids with gaps


def tar(scores, genuine, far):
    return tar_at_far(scores, genuine, (far,))[0].tar


def written_out(drawn, first, second):
    """The pairs of a resample, one by one: copy i of a unit with copy j of another, and with
    itself, never with another copy of the same unit."""
    return np.array(
        [
            pair
            for pair, (a, b) in enumerate(zip(first, second, strict=True))
            for i in np.flatnonzero(drawn == a)
            for j in np.flatnonzero(drawn == b)
            if a != b or i == j
        ],
        int,
    )


def multiplied(drawn, first, second):
    """The same by numbers of copies, for larger data."""
    ids, counts = np.unique(drawn, return_counts=True)
    copies = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    w_first, w_second = (np.array([copies.get(x, 0) for x in side.tolist()])
                         for side in (first, second))  # fmt: skip
    return np.repeat(np.arange(len(first)), w_first * np.where(first == second, 1, w_second))


def brute_force(scores, first, second, genuine, fars, resamples, seed, pairs_of=written_out):
    """The resamples in full, judged like any data."""
    ids = np.unique([first, second])
    stream = generator("cpu", seed, "bootstrap over templates")
    tars = []
    while len(tars) < resamples:
        drawn = ids[torch.randint(len(ids), (len(ids),), generator=stream).numpy()]
        kept = pairs_of(drawn, first, second)
        if genuine[kept].any() and not genuine[kept].all():
            points = [tar_at_far(s[kept], genuine[kept], fars) for s in scores]
            tars.append([[point.tar for point in of_system] for of_system in points])
    return np.array(tars)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["subjects", "templates", "pairs"]),
    fars=st.lists(st.sampled_from(FARS), min_size=1, max_size=3),
    units=st.integers(2, 12),
    pairs=st.integers(2, 150),
    systems=st.integers(1, 3),
)
def test_against_resamples_written_out(seed, kind, fars, units, pairs, systems):
    data = trial(seed, units, pairs, systems, kind=kind)
    result = bootstrap_tar(*data, fars, resamples=8, seed=seed)
    assert result.shape == (8, systems, len(fars))
    np.testing.assert_array_equal(result, brute_force(*data, tuple(fars), 8, seed))


@pytest.mark.parametrize("kind", ["subjects", "templates"])
def test_thresholds_far_down_are_found_in_their_blocks(kind, monkeypatch):
    data = trial(1, units=200, pairs=40_000, systems=2, levels=5000, kind=kind)
    fars = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.9, 1.0)
    expected = brute_force(*data, fars, 6, 0, multiplied)
    np.testing.assert_array_equal(bootstrap_tar(*data, fars, 6), expected)
    monkeypatch.setattr(bootstrap, "_FLOAT32_EXACT", 20_000)  # sums in several parts
    np.testing.assert_array_equal(bootstrap_tar(*data, fars, 6), expected)


def test_it_looks_deeper_when_the_best_impostors_are_not_drawn():
    """The best 400 of 500 impostors are of one pair of templates, so a resample may lack them."""
    first = np.array([0] * 400 + list(range(2, 102)) + [102, 104])
    second = np.array([1] * 400 + list(range(3, 103)) + [103, 105])
    genuine = np.arange(502) >= 500
    scores = np.concatenate([np.arange(1000, 600, -1), np.arange(100), [50, 700]])
    data = np.stack([scores, np.flip(scores)]).astype(float), first, second, genuine
    np.testing.assert_array_equal(
        bootstrap_tar(*data, (0.01,), 40, seed=3), brute_force(*data, (0.01,), 40, 3, multiplied)
    )


def test_resamples_without_a_genuine_pair_are_drawn_again():
    """One genuine pair among six templates: it is missing from more than half of the resamples."""
    first, second = np.array([0, 2, 2, 3, 4]), np.array([1, 3, 4, 5, 5])
    genuine = np.arange(5) == 0
    scores = np.array([[5.0, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    tars = bootstrap_tar(scores, first, second, genuine, (0.0, 1.0))
    assert tars.shape == (1000, 2, 2)
    assert (tars == [[1, 1], [0, 1]]).all()


def test_a_target_that_is_a_whole_number_of_impostors_is_used_up():
    """Two templates: each resample with a pair is the data. 0.29 of 100 is 29, if not in floats."""
    genuine = np.arange(200) % 2 == 0
    scores = np.stack([np.arange(200.0), np.arange(200.0)[::-1]])
    ends = np.zeros(200, int), np.ones(200, int)
    tars = bootstrap_tar(scores, *ends, genuine, (0.29,), resamples=9)
    assert (tars[:, :, 0] == [tar(s, genuine, 0.29) for s in scores]).all()


@pytest.mark.parametrize(
    ("units", "independent"), [("people", 100), ("pairs", 400)], ids=["people", "pairs"]
)
def test_the_spread_is_binomial_in_the_number_of_units(units, independent):
    """Of 100 people with 4 genuine pairs each, 70 are always accepted and 30 never: TAR has the
    standard deviation sqrt(0.7 * 0.3 / n). A copy of a person is a person, not more pairs per pair:
    weights w ** 2 would give 1.7 times as much."""
    person = np.concatenate([np.repeat(np.arange(100), 4), np.arange(100)])
    other = np.where(np.arange(500) < 400, person, (person + 1) % 100)
    genuine = person == other
    scores = np.where(genuine, np.where(person < 70, 2.0, 0.0), 1.0)
    sides = (person, other) if units == "people" else (np.arange(500), np.arange(500))
    tars = bootstrap_tar(scores[None], *sides, genuine, (0.0,), 4000)
    assert tars.mean() == pytest.approx(0.7, abs=0.005)
    assert tars.std() == pytest.approx(math.sqrt(0.7 * 0.3 / independent), rel=0.05)


def test_systems_and_fars_share_the_resamples():
    scores, *rest = trial(2, units=30, pairs=400, kind="subjects")
    tars = bootstrap_tar(scores, *rest, FARS, 30, seed=5)
    assert len({column.tobytes() for column in tars[:, :, 2].T}) == len(scores)  # they differ
    for k, of_system in enumerate(scores):
        for f, far in enumerate(FARS):
            alone = bootstrap_tar([of_system], *rest, (far,), 30, seed=5)
            np.testing.assert_array_equal(alone[:, 0, 0], tars[:, k, f])


def test_it_is_reproducible_however_it_is_cut(monkeypatch):
    scores, *rest = trial(0, units=8, pairs=60)  # some resamples are drawn again
    genuine = rest[-1]
    genuine[np.flatnonzero(genuine)[1:]] = False
    whole = bootstrap_tar(scores, *rest, FARS, 25, seed=1)
    np.testing.assert_array_equal(bootstrap_tar(scores, *rest, FARS, 25, seed=1), whole)
    assert (bootstrap_tar(scores, *rest, FARS, 25, seed=2) != whole).any()
    np.testing.assert_array_equal(bootstrap_tar(scores, *rest, FARS, 9, seed=1), whole[:9])
    for at_once in (1, 7):
        monkeypatch.setattr(bootstrap, "_CELLS", 8 * at_once)
        np.testing.assert_array_equal(bootstrap_tar(scores, *rest, FARS, 25, seed=1), whole)


def test_the_global_random_stream_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    bootstrap_tar(*trial(0), (0.1,), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interval_is_made_of_quantiles():
    replicates = np.random.default_rng(0).permutation(np.arange(101.0))
    assert interval(replicates, 7) == pytest.approx((7, 2.5, 97.5))
    assert interval(replicates, 7, confidence=0.5) == pytest.approx((7, 25, 75))
    assert math.isnan(interval(np.array([1, math.nan, 2]), 1).low)


def test_other_functions_of_the_tars():
    """Update gain: 0 for the old model, 1 for the model alone, in every resample."""
    scores, *rest = trial(3, units=40, pairs=2000, kind="subjects")
    old, alone = scores[0], scores[1] + 6 * rest[-1]
    for cross, gain in ((old, 0.0), (alone, 1.0)):
        systems = [old, cross, alone]
        o, c, a = bootstrap_tar(systems, *rest, (0.1,), 50)[:, :, 0].T
        estimate = update_gain(*(tar(s, rest[-1], 0.1) for s in (cross, old, alone)))
        assert interval((c - o) / (a - o), estimate) == Interval(gain, gain, gain)


def gap(cross, old, first, second, genuine, far, resamples, seed=0):
    """TAR of cross - TAR of old, with its interval."""
    tars = bootstrap_tar([cross, old], first, second, genuine, (far,), resamples, seed)[:, :, 0]
    return interval(tars[:, 0] - tars[:, 1], tar(cross, genuine, far) - tar(old, genuine, far))


def test_equal_systems_differ_by_nothing_and_a_swap_changes_the_sign():
    scores, *rest = trial(4, units=30, pairs=400)
    cross, old = scores[0], scores[2]
    assert gap(cross, cross, *rest, 0.1, 50) == Interval(0.0, 0.0, 0.0)
    there, back = gap(cross, old, *rest, 0.1, 50), gap(old, cross, *rest, 0.1, 50)
    assert there.low < there.high
    assert [back.estimate, back.low, back.high] == pytest.approx(
        [-there.estimate, -there.high, -there.low]
    )


def population(seed, people=150, impostors=4000):
    """scores (2, P) with d' 1.5 and 1, templates and people of either side, genuine.

    Some people are recognised easily, and some are taken for many others; both systems agree about
    that to a degree. Normal with variance 1, so TAR at FAR f is Phi(d' - z), z the quantile 1 - f.
    """
    rng = np.random.default_rng(seed)
    a = np.repeat(np.arange(people), rng.integers(5, 26, people))
    b = rng.integers(0, people, impostors)
    genuine = np.arange(len(a) + impostors) < len(a)
    first = np.append(a, b)
    second = np.append(a, (b + rng.integers(1, people, impostors)) % people)
    templates = rng.permuted(np.tile(np.arange(12), (len(first), 1)), axis=1)[:, :2].T
    easy, alike = (
        math.sqrt(variance / 2) * (rng.normal(size=(1, people)) + rng.normal(size=(2, people)))
        for variance in (0.7, 0.18)
    )
    noise = rng.normal(size=(2, len(first)))
    scores = np.where(
        genuine,
        np.array([[1.5], [1.0]]) + easy[:, first] + math.sqrt(0.3) * noise,
        alike[:, first] + alike[:, second] + math.sqrt(1 - 2 * 0.18) * noise,
    )
    return scores, 12 * np.stack([first, second]) + templates, np.stack([first, second]), genuine


def test_intervals_over_people_cover_the_truth():
    far, z = 0.1, norm.isf(0.1)
    truth = norm.cdf(1.5 - z) - norm.cdf(1.0 - z)
    intervals = []
    for seed in range(150):
        scores, templates, people, genuine = population(seed)
        intervals.append([gap(*scores, *units, genuine, far, 200) for units in (people, templates)])
    estimate, low, high = np.array(intervals).transpose(2, 1, 0)  # each (2 kinds of units, 150)
    assert np.mean(estimate) == pytest.approx(truth, abs=0.01)
    covered = np.mean((low <= truth) & (truth <= high), axis=1)
    width = np.mean(high - low, axis=1) / (2 * 1.96 * np.std(estimate, axis=1))
    assert 0.92 <= covered[0] <= 0.98
    assert 0.9 < width[0] < 1.15
    assert covered[1] < 0.92 and width[1] < 0.85  # templates do not see that people differ


def test_intervals_over_templates_cover_the_truth_where_only_they_differ():
    """Normal scores with effects of templates: TAR at FAR f is Phi(d - z), z the quantile 1 - f."""
    rng, far, templates = np.random.default_rng(0), 0.1, 60
    first, second = np.triu_indices(templates, 1)
    genuine = first // 20 == second // 20
    z = norm.isf(far)
    truth = norm.cdf(1.5 - z) - norm.cdf(1.0 - z)
    intervals = []
    for seed in range(100):
        shared, own = rng.normal(0, 0.45, templates), rng.normal(0, 0.5, (2, templates))
        effects = shared + own  # the same templates are easy for both systems, to a degree
        noise = rng.normal(0, math.sqrt(1 - 2 * (0.45**2 + 0.5**2)), (2, len(first)))
        scores = effects[:, first] + effects[:, second] + noise
        cross, old = scores[0] + 1.5 * genuine, scores[1] + 1.0 * genuine
        intervals.append(gap(cross, old, first, second, genuine, far, 200, seed=seed))
    estimate, low, high = np.array(intervals).T
    assert np.mean(estimate) == pytest.approx(truth, abs=0.02)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93
    assert 0.9 < np.mean(high - low) / (2 * 1.96 * np.std(estimate)) < 1.6


def test_it_refuses_what_does_not_fit():
    scores, first, second, genuine = trial(0)
    for wrong in (
        (scores[:, 1:], first, second, genuine),
        (scores, first[1:], second, genuine),
        (scores, first, second, genuine[1:]),
        (scores, first, second, genuine[None]),
        (scores[0], first, second, genuine),
        (scores[:0], first, second, genuine),
        ([scores[0], scores[1, 1:]], first, second, genuine),
    ):
        with pytest.raises(BctError, match="scores are"):
            bootstrap_tar(*wrong, (0.1,))
    for fars in ((), (0.1, -0.1), (1.1,), (math.nan,)):
        with pytest.raises(BctError, match="the FARs are"):
            bootstrap_tar(scores, first, second, genuine, fars)
    for labels in (np.zeros_like(genuine), np.ones_like(genuine)):
        with pytest.raises(BctError, match="there is no"):
            bootstrap_tar(scores, first, second, labels, (0.1,))
    with pytest.raises(BctError, match="not finite"):
        bootstrap_tar(scores * np.nan, first, second, genuine, (0.1,))
