"""Backfill curves against galleries that are really mixed, and curves worked out by hand."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.metrics import mixed
from bct.metrics.backfill import (
    Curve,
    area,
    curve,
    lasting_fraction,
    mixed_scores,
    pair_point,
    pair_quality,
    published_mean,
    refreshed,
    refreshed_in_batches,
    regressions,
    search_quality,
    smallest_fraction,
    violations,
)
from bct.metrics.compatibility import update_gain
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass, ByItem, Rows, positives, unopposed
from bct.metrics.retrieval import METRICS, retrieve
from bct.metrics.scores import identification, tar_at_far
from bct.search.orders import (
    disagreement,
    distance_to_centre,
    order_by_distance,
    order_random,
    orders_by_distance,
)

FRACTIONS = np.linspace(0, 1, 11)


def points(*values):
    return Curve(np.linspace(0, 1, len(values)), np.array(values, float))


def units(rng, n, d=6):
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def galleries(seed, n=40):
    """New queries, old and new gallery of n subjects, and pairs of every query with every item."""
    rng = np.random.default_rng(seed)
    people = units(rng, n)
    queries, new, old = (people + s * units(rng, n) for s in (0.3, 0.4, 0.9))
    query, item = (index.ravel() for index in np.mgrid[:n, :n])
    return queries, old, new, query, item


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_pairs_against_a_gallery_that_is_really_mixed(seed):
    queries, old, new, query, item = galleries(seed)
    cross, self_ = ((queries[query] * g[item]).sum(1) for g in (old, new))
    order = order_random(len(old), seed)
    result = curve(order, FRACTIONS, pair_quality(cross, self_, item, query == item, 0.01))
    for b, value in zip(*result, strict=True):
        mixed = old.copy()
        mixed[order[: math.ceil(round(b * 40, 9))]] = new[order[: math.ceil(round(b * 40, 9))]]
        scores = (queries[query] * mixed[item]).sum(1)
        assert value == tar_at_far(scores, query == item, (0.01,))[0].tar
    # the ends are the cross and the self test, to the last bit
    ends = [tar_at_far(s, query == item, (0.01,))[0].tar for s in (cross, self_)]
    assert result.values[[0, -1]].tolist() == ends


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_search_against_a_gallery_that_is_really_mixed(seed):
    queries, old, new, _, _ = galleries(seed)
    rng = np.random.default_rng(seed)
    subjects = rng.permutation(40)
    probes = np.where(np.arange(40) < 30, subjects, 100)  # ten strangers
    order = order_by_distance(disagreement(old, new))
    result = curve(
        order, FRACTIONS, search_quality(queries @ old.T, queries @ new.T, probes, subjects)
    )
    for b, value in zip(*result, strict=True):
        chosen = np.zeros(40, bool)
        chosen[order[: math.ceil(round(b * 40, 9))]] = True
        similarity = np.stack(
            [queries @ (new if c else old)[i] for i, c in enumerate(chosen)], axis=1
        )
        first = [
            np.sum(row >= row[subjects == p]) == 1
            for row, p in zip(similarity[:30], probes[:30], strict=True)
        ]
        assert value == pytest.approx(np.mean(first))
    for end, gallery in ((0, old), (-1, new)):
        test = identification(queries @ gallery.T, probes, subjects, np.zeros(0))
        assert result.values[end] == test.hits[1] / test.mated


def test_old_equal_to_new_is_a_flat_curve_and_an_undefined_gain():
    queries, old, _, query, item = galleries(0)
    scores = (queries[query] * old[item]).sum(1)
    flat = curve(
        order_random(40, 1), FRACTIONS, pair_quality(scores, scores, item, query == item, 0.1)
    )
    assert len(set(flat.values)) == 1
    assert violations(flat) == (0, 0.0, 0.0)
    assert area(flat) == pytest.approx(published_mean(flat)) == pytest.approx(flat.values[0])
    assert smallest_fraction(flat, flat.values[-1]) == 0.0
    assert math.isnan(update_gain(flat.values[0], flat.values[0], flat.values[-1]))


@given(n=st.integers(1, 200), seed=st.integers(0, 100), bins=st.integers(2, 30))
def test_the_subsets_are_nested_and_of_the_stated_size(n, seed, bins):
    seen = []

    def quality(refreshed):
        seen.append(refreshed)
        return 0.0

    order = order_random(n, seed)
    curve(order, [i / bins for i in range(bins + 1)], quality)
    for i, chosen in enumerate(seen):
        assert chosen.sum() == -(-i * n // bins)  # ceil(i n / bins) in integers
        assert set(np.flatnonzero(chosen)) == set(order[: chosen.sum()])
    assert not seen[0].any() and seen[-1].all()


def test_a_fraction_that_is_a_whole_number_of_items_is_not_rounded_up():
    """0.07 * 100 is a little more than 7 in floating point."""
    result = curve(np.arange(100), [0, 0.07, 1], lambda refreshed: float(refreshed.sum()))
    assert result.values.tolist() == [0, 7, 100]


def test_figures_of_a_curve_by_hand():
    c = points(0.2, 0.5, 0.4, 0.3, 0.6)
    assert area(c) == pytest.approx((0.35 + 0.45 + 0.35 + 0.45) / 4)
    assert published_mean(c) == pytest.approx(0.4)
    steps, lost, drawdown = violations(c)
    assert (steps, lost, drawdown) == (2, pytest.approx(0.2), pytest.approx(0.2))
    assert smallest_fraction(c, 0.5) == 0.25  # though 0.75 is below it again
    assert smallest_fraction(c, 0.6, eps=0.05) == 1.0
    assert smallest_fraction(c, 0.6, eps=0.11) == 0.25
    assert smallest_fraction(c, 0.7) is None
    assert lasting_fraction(c, 0.5) == 1.0 and lasting_fraction(c, 0.3) == 0.25
    assert lasting_fraction(c, 0.2) == 0.0 and lasting_fraction(c, 0.7) is None
    assert lasting_fraction(c, 0.31, eps=0.02) == 0.25
    uneven = Curve(np.array([0, 0.1, 1.0]), np.array([0.0, 1.0, 1.0]))
    assert area(uneven) == pytest.approx(0.95)


@given(values=st.lists(st.integers(-20, 20), min_size=2, max_size=12))
def test_falls_against_every_pair_of_points(values):
    steps, lost, drawdown = violations(points(*values))
    pairs = [(values[i], values[j]) for j in range(len(values)) for i in range(j + 1)]
    assert drawdown == max(a - b for a, b in pairs)
    assert steps == sum(b < a for a, b in pairwise(values))
    climbs = sum(max(b - a, 0) for a, b in pairwise(values))
    assert climbs - lost == values[-1] - values[0]


@given(values=st.lists(st.integers(-5, 5), min_size=2, max_size=8), goal=st.integers(-5, 5))
def test_what_lasts_is_never_below_the_goal_again(values, goal):
    c = points(*values)
    kept = [k for k in range(len(values)) if min(values[k:]) >= goal]
    assert lasting_fraction(c, goal) == (c.fractions[kept[0]] if kept else None)


def test_a_point_with_and_without_a_new_threshold():
    """Ten impostors at 0.0 to 0.9, five genuine pairs; a threshold accepts what equals it."""
    scores = np.concatenate([np.arange(10) / 10, [0.05, 0.45, 0.75, 0.85, 0.95]])
    genuine = np.arange(15) >= 10
    point = pair_point(scores, genuine, 0.2, 0.7)
    assert (point.tar, point.kept_tar, point.kept_far) == (0.6, 0.6, 0.3)
    assert 0.7 < point.threshold < 0.7 + 1e-9
    assert pair_point(scores, genuine, 0.2, 0.9)[2:] == (0.2, 0.1)


def test_mixed_scores():
    fresh = np.array([True, False, True])
    mixed = mixed_scores(np.zeros(4), np.arange(1, 5), np.array([0, 1, 2, 1]), fresh)
    assert mixed.tolist() == [1, 0, 3, 0]


def test_orders():
    order = order_random(50, 3)
    assert sorted(order) == list(range(50))
    assert order.tolist() == order_random(50, 3).tolist() != order_random(50, 4).tolist()
    assert order_by_distance(np.array([1, 3, 1, 3, 2])).tolist() == [1, 3, 4, 0, 2]
    assert order_by_distance(np.array([0, 200, 7], np.uint8)).tolist() == [1, 2, 0]
    many = np.random.default_rng(0).integers(0, 3, 1000)  # enough that an unstable sort shows
    assert order_by_distance(many).tolist() == sorted(range(1000), key=lambda i: (-many[i], i))
    with pytest.raises(BctError, match="1 distances are NaN"):
        order_by_distance(np.array([1.0, np.nan]))


def test_distances_by_hand():
    x = np.array([[2, 0], [0, 5], [-3, 0], [0, -1], [0, -2]], np.float32)
    label = np.array([9, 9, 4, 7, 7])
    # the class centre of 9 is (1, 1) / sqrt(2), at 45 degrees from both: a chord of 2 sin(22.5)
    chord = 2 * math.sin(math.pi / 8)
    assert distance_to_centre(x, label) == pytest.approx([chord, chord, 0, 0, 0], abs=1e-6)
    quarter = np.array([[0, 1], [0, 1], [1, 0], [0, -7], [1, -1]], np.float32)
    expected = [1, 0, 2, 0, 1 - math.sqrt(0.5)]
    assert disagreement(x, quarter) == pytest.approx(expected, abs=1e-6)
    assert disagreement(x, x).tolist() == [0] * 5


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_distances_in_float64(seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((30, 5)) * rng.uniform(0.1, 9, (30, 1)) for _ in range(2))
    label = rng.integers(0, 7, 30)
    n, m = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    for i, distance in enumerate(distance_to_centre(x, label)):
        centre = n[label == label[i]].sum(0)
        centre /= np.linalg.norm(centre)
        assert distance == pytest.approx(math.dist(n[i], centre), abs=1e-5)
    assert disagreement(x, y) == pytest.approx(1 - (n * m).sum(1), abs=1e-5)


def test_what_makes_no_curve():
    def flat(refreshed):
        return 0.5

    for order in ([0, 0, 1], [1, 2, 3]):
        with pytest.raises(BctError, match="no permutation"):
            curve(np.array(order), FRACTIONS, flat)
    for fractions in (
        [0, 0.5],
        [0.1, 1],
        [0, 0.5, 0.5, 1],
        [0, 0.7, 0.3, 1],
        [1],
        [],
        [0, np.nan, 1],
    ):
        with pytest.raises(BctError, match="rise from 0 to 1"):
            curve(np.arange(3), fractions, flat)
    with pytest.raises(BctError, match="NaN at fraction 0"):
        curve(np.arange(3), [0, 1], lambda refreshed: math.nan)
    with pytest.raises(BctError, match="one width"):
        disagreement(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(BctError, match="in one order"):
        pair_quality(np.ones(3), np.ones(4), np.zeros(3, int), np.ones(3, bool), 0.1)
    with pytest.raises(BctError, match="in one order"):
        search_quality(np.ones((3, 2)), np.ones((2, 3)), np.arange(3), np.arange(2))


# ---- searches of many mixtures in one pass


def exact(rng, n, metric):
    """Rows whose scores float32 holds exactly, most of them tied."""
    if metric == "cosine":
        return rng.choice([-1.0, 1.0], (n, 16)).astype(np.float32)
    return rng.integers(-3, 4, (n, 8)).astype(np.float32)


def some_relevance(rng, kind, q, g):
    """Of q queries and g items; own: of the q items themselves."""
    labels, others = rng.integers(0, 9, q), rng.integers(0, 7, g)
    labels[0] = others[0]
    if kind == "classes":
        return ByClass(labels, others)
    if kind == "own":
        labels[1] = labels[0]
        return ByClass(labels, labels, leave_one_out=True)
    chosen = [rng.permutation(g)[: rng.integers(0, g + 1)] for _ in range(q)]
    chosen[0] = np.arange(g)
    cuts = [1, *(rng.integers(0, len(rows) + 1) for rows in chosen[1:])]
    split = [np.split(rows, [cut]) for rows, cut in zip(chosen, cuts, strict=True)]
    return ByItem(*(Rows.of_lists(side) for side in zip(*split, strict=True)))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(["classes", "own", "items"]),
    block=st.sampled_from([1, 7, 1000]),
)
def test_mixed_searches_against_galleries_that_are_really_mixed(seed, metric, kind, block):
    """Up to four versions, in any mixture: ap and rank are those of retrieve to the last bit."""
    rng = np.random.default_rng(seed)
    q = g = int(rng.integers(2, 40))
    g = q if kind == "own" else int(rng.integers(1, 40))
    number = int(rng.integers(1, 5))
    query, galleries = exact(rng, q, metric), [exact(rng, g, metric) for _ in range(number)]
    curves = [rng.integers(0, number, (int(rng.integers(1, 5)), g)) for _ in range(2)]
    relevance = some_relevance(rng, kind, q, g)
    if not (positives(relevance) * ~unopposed(relevance, g)).any():
        with pytest.raises(BctError, match=r"no item can be wrong|no query has a positive"):
            retrieve_mixed(query, galleries, curves, relevance, metric, (1, 3), block)
        return
    found = retrieve_mixed(query, galleries, curves, relevance, metric, (1, 3), block)
    for curve_, results in zip(curves, found, strict=True):
        for versions, result in zip(curve_, results, strict=True):
            gallery = np.stack(galleries)[versions, np.arange(g)]
            plain = retrieve(query, gallery, relevance, metric, (1, 3))
            np.testing.assert_array_equal(result.rank, plain.rank)
            np.testing.assert_allclose(result.ap, plain.ap, rtol=0, atol=1e-15)
            assert result.top == plain.top and result.without == plain.without


def test_a_curve_of_real_numbers_in_blocks_of_bounded_size(monkeypatch):
    """The ends are the cross and the self test; no block of scores is larger than allowed."""
    rng, sizes = np.random.default_rng(0), []
    count = mixed.count_at_least

    def watched(scores, *rest):
        sizes.append(scores.size)
        return count(scores, *rest)

    monkeypatch.setattr(mixed, "count_at_least", watched)
    monkeypatch.setattr(mixed, "SCORES", 40_000)
    labels = np.arange(300) % 20
    own = rng.standard_normal((20, 16))[labels]
    old, new = (own + noise * rng.standard_normal((300, 16)) for noise in (2.0, 1.0))
    relevance = ByClass(labels, labels, leave_one_out=True)
    steps = refreshed(order_random(300, 1), FRACTIONS)
    points = retrieve_mixed(new, [old, new], [steps], relevance)[0]
    for end, gallery in ((0, old), (-1, new.copy())):
        plain = retrieve(new, gallery, relevance)
        np.testing.assert_allclose(points[end].ap, plain.ap, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(points[end].rank, plain.rank)
    assert max(sizes) <= 40_000 // 300 * 31  # queries of a block by the items of one step
    assert points[0].mean_ap < points[5].mean_ap < points[-1].mean_ap


def test_mixed_searches_that_do_not_fit():
    x, labels = np.ones((4, 2), np.float32), np.zeros(4, int)
    classes = ByClass(labels, labels)
    for wrong, galleries, curve_ in (
        ("labels are", [x, x[:3]], np.zeros((1, 4), int)),
        (r"\(1, 3\) for 4 gallery rows", [x, x], np.zeros((1, 3), int)),
        (r"\(4,\) for 4 gallery rows", [x, x], np.zeros(4, int)),
        ("versions 0 to 2 of 2", [x, x], np.array([[0, 1, 2, 0]])),
        ("versions -1 to 0 of 2", [x, x], np.array([[0, -1, 0, 0]])),
        ("versions 0 to 256 of 2", [x, x], np.array([[0, 256, 0, 0]])),
        ("versions 0.0 to 0.7 of 2", [x, x], np.array([[0, 0.7, 0, 0]])),
        ("2 dimensions, the gallery 1", [x, x[:, :1]], np.zeros((1, 4), int)),
    ):
        with pytest.raises(BctError, match=wrong):
            retrieve_mixed(x, galleries, [curve_], classes)


def test_rounding_orders_no_classes_of_one_row():
    """Most templates of a gallery may be one image: each is its own centre, in any unit."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 64)).astype(np.float32)
    labels = np.r_[np.arange(250), 250 + np.arange(50) // 5]
    for scale in (1, 3, 7, 1e-3):
        distance = distance_to_centre(rows * np.float32(scale), labels)
        assert (distance[:250] == 0).all() and (distance[250:] > 0.1).all()
    ways = orders_by_distance(distance)
    assert len(ways) == 3 and all(sorted(way) == list(range(300)) for way in ways)
    for way in ways:  # the ties come in another order each time, the others do not
        assert way[:50].tolist() == order_by_distance(distance)[:50].tolist()
    assert len({tuple(way) for way in ways}) == 3
    (only,) = orders_by_distance(distance[250:])
    assert only.tolist() == order_by_distance(distance[250:]).tolist()


def test_published_batches():
    """Whole batches of 16, int(share * batches), drawn anew from one seed: not nested as a rule."""
    shares = [0, 0.25, 0.5, 0.75, 1]
    rows = refreshed_in_batches(313 * 16 - 5, shares)
    batches = rows[:, ::16]
    assert batches.sum(1).tolist() == [0, 78, 156, 234, 313]
    np.testing.assert_array_equal(np.repeat(batches, 16, axis=1)[:, : rows.shape[1]], rows)
    nested = [not (a & ~b).any() for a, b in pairwise(batches)]
    assert nested == [True, False, True, True]  # a quarter is not inside the half
    for number in (100, 1000):
        batches = refreshed_in_batches(number, shares, batch=1)
        assert all(not (a & ~b).any() for a, b in pairwise(batches))
    random.seed(100)
    drawn = random.sample(range(7), int(0.5 * 7))
    assert np.flatnonzero(refreshed_in_batches(7, [0.5], 1)[0]).tolist() == sorted(drawn)


def test_regressions_by_hand():
    """Four queries that count, and one without a positive."""
    rank = [[1, 1, 2, 3, 0], [1, 2, 1, 3, 0], [2, 5, 1, 1, 0]]
    ap = [[1.0, 0.9, 0.5, 0.3, math.nan], [1.0, 0.5, 1.0, 0.2, math.nan]]
    ap.append([0.5, 0.2, 1.0, 1.0, math.nan])
    found = regressions(np.array(ap), np.array(rank))
    assert found.negative_flips.tolist() == [0, 0.25, 0.5]
    assert found.positive_flips.tolist() == [0, 0.25, 0.5]
    assert found.ap_drops.tolist() == [0, 0.5, 0.5]
    with pytest.raises(BctError, match="no query has a positive"):
        regressions(np.full((2, 3), np.nan), np.zeros((2, 3), int))
    with pytest.raises(BctError, match="the arrays are"):
        regressions(np.ones((2, 3)), np.ones((3, 3), int))
