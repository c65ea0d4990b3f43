"""Places of positives, and what is made of them, against a ranking that is really made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.metrics import positions as p
from bct.metrics.average_precision import average_precision, precision_at
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.positions import LATER, Positions, positions
from bct.metrics.relevance import ByClass, ByItem, Rows, by_query, unopposed
from bct.metrics.relevance import positives as number_of_positives
from bct.metrics.retrieval import METRICS, of_queries, retrieve, retrieve_readings

SEEDS = st.integers(0, 10**6)


def exact(rng, n, metric, dim=16):
    """Embeddings whose scores float32 holds exactly; most of them tie."""
    if metric == "cosine":
        return rng.choice([-1.0, 1.0], (n, dim)).astype(np.float32)
    return rng.integers(-3, 4, (n, dim)).astype(np.float32)


def scores_of(query, gallery, metric):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "l2":
        return -np.square(query[:, None] - gallery[None]).sum(2)
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    return query @ gallery.T / np.where(lengths > 0, lengths, 1)


def random_relevance(rng, q, g):
    positive, ignored = [], []
    for _ in range(q):
        chosen = rng.permutation(g)[: rng.integers(0, g + 1)]
        positive.append(chosen[: rng.integers(0, len(chosen) + 1)])
        ignored.append(chosen[len(positive[-1]) :])
    return ByItem(Rows.of_lists(positive), Rows.of_lists(ignored))


def sorted_places(scores, positive, ignored):
    """By a sort: ignored items left out, a negative before a positive of its score."""
    kept = [j for j in range(len(scores)) if j not in ignored]
    kept.sort(key=lambda j: (-scores[j], j in positive))
    return [place for place, j in enumerate(kept, 1) if j in positive]


def by_sorting(scores, relevance):
    items = by_query(relevance)(np.arange(len(scores)))
    sides = [np.split(side.rows, side.offsets[1:-1]) for side in items]
    return [
        sorted_places(row, set(a.tolist()), set(b.tolist()))
        for row, a, b in zip(scores, *sides, strict=True)
    ]


def listed(found):
    return [part.tolist() for part in np.split(found.places, found.offsets[1:-1])]


@settings(max_examples=40)
@given(seed=SEEDS, metric=st.sampled_from(METRICS))
def test_places_against_a_plain_sort(seed, metric):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, [20, 30])
    query, gallery = exact(rng, q, metric), exact(rng, g, metric)
    labels = rng.integers(0, 3, q), rng.integers(0, 3, g)
    readings = {"a": random_relevance(rng, q, g), "b": random_relevance(rng, q, g)}
    readings["classes"] = ByClass(*labels)
    scores = scores_of(query, gallery, metric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p, "SCORES", int(rng.integers(1, 400)))
        patch.setattr(p, "ROWS", int(rng.integers(1, 40)))
        found = positions(query, gallery, readings, metric)
    for name, relevance in readings.items():
        assert listed(found[name]) == by_sorting(scores, relevance)
        alone = positions(query, gallery, {name: relevance}, metric)[name]
        assert listed(alone) == listed(found[name])


def test_rows_of_all_types_lengths_and_places(tmp_path):
    """float16 and float64 rows, tiny, long and of zeros, in the memory and on disk."""
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((9, 12)), rng.standard_normal((300, 12))
    relevance = random_relevance(rng, 9, 300)
    plain = by_sorting(scores_of(query, gallery, "cosine"), relevance)
    lengths = 10.0 ** rng.integers(-200, 200, (300, 1))
    gallery_of = {
        "float64": gallery,
        "float32": gallery.astype(np.float32),
        "lengths": gallery * lengths,
        "transposed": np.asfortranarray(gallery.astype(np.float32)),
    }
    for name, rows in gallery_of.items():
        np.save(tmp_path / f"{name}.npy", np.ascontiguousarray(rows))
        stored = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        for features in (rows, stored):
            assert listed(positions(query, features, {"": relevance})[""]) == plain, name
    short = gallery.astype(np.float16)
    found = positions(query * 1e-30, short, {"": relevance})[""]
    assert listed(found) == by_sorting(scores_of(query, short, "cosine"), relevance)
    gallery[[3, 70]] = 0
    found = positions(query, gallery, {"": relevance})[""]
    assert listed(found) == by_sorting(scores_of(query, gallery, "cosine"), relevance)
    gallery[3, 5] = np.nan
    for features in (gallery, gallery.astype(np.float32)):
        with pytest.raises(BctError, match="row 3 is not finite"):
            positions(query, features, {"": relevance})


@pytest.mark.parametrize("dim", [3, 8, 64, 512])
def test_near_ties_are_told_apart(dim):
    """Scores that differ by less than float32 holds: the order is that of float64."""
    rng = np.random.default_rng(dim)
    query = rng.standard_normal((6, dim)).astype(np.float32)
    gallery = np.repeat(query, 50, axis=0) + 1e-4 * rng.standard_normal((300, dim))
    gallery = np.concatenate([gallery, rng.standard_normal((100, dim))]).astype(np.float32)
    gallery[7] = gallery[20]  # a real tie counts against the query
    relevance = random_relevance(rng, 6, 400)
    scores = scores_of(query, gallery, "cosine")
    found = positions(query, gallery, {"": relevance})[""]
    assert listed(found) == by_sorting(scores, relevance)
    single = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ gallery.T
    single = single / np.linalg.norm(gallery, axis=1)
    assert by_sorting(single, relevance) != listed(found)  # else this tests nothing


def test_real_ties_count_against_the_query():
    rng = np.random.default_rng(1)
    query, row = rng.standard_normal((2, 1, 40)).astype(np.float32)
    gallery = np.concatenate([row] * 9 + [query * [[2.0], [3.0]]]).astype(np.float32)
    relevance = ByItem(Rows.of_lists([[0, 4, 10]]), Rows.of_lists([[2]]))
    assert listed(positions(query, gallery, {"": relevance})[""]) == [[2, 9, 10]]


# ---- average precision and precision


def test_ways_by_hand():
    """Places 1, 3 and later of three positives."""
    found = Positions(np.array([0, 3, 3]), np.array([1, 3, LATER]))
    steps, trapezoid, first = (
        average_precision(found, way) for way in ("steps", "trapezoid", "first100")
    )
    assert steps[0] == pytest.approx((1 + 2 / 3) / 3)
    assert trapezoid[0] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 3)
    assert first[0] == pytest.approx((1 + 2 / 3) / 3)
    assert np.isnan([steps[1], trapezoid[1], first[1]]).all()
    assert precision_at(found, 5)[0] == 2 / 5
    few = Positions(np.array([0, 2]), np.array([1, 3]))
    assert precision_at(few, 10)[0] == 2 / 3  # no further than the last positive
    assert precision_at(few, 10, whole=True)[0] == 2 / 10
    assert np.isnan(precision_at(found, 5)[1])
    many = Positions(np.array([0, 150]), np.arange(1, 151))
    assert average_precision(many, "first100")[0] == 1
    with pytest.raises(BctError, match="by 'trapeze'"):
        average_precision(found, "trapeze")


def trapezoid_of(places):
    """By the area under the curve of precision over recall, drawn point by point."""
    area, n = 0.0, len(places)
    for i, place in enumerate(places):
        before = 1.0 if place == 1 else i / (place - 1)
        area += (before + (i + 1) / place) / 2 / n
    return area


@settings(max_examples=25)
@given(seed=SEEDS, metric=st.sampled_from(METRICS))
def test_retrieval_of_each_way(seed, metric):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(2, [12, 160])
    query, gallery = rng.standard_normal((q, 8)), rng.standard_normal((g, 8))
    readings = {"a": random_relevance(rng, q, g), "b": random_relevance(rng, q, g)}
    for relevance in readings.values():
        judged = (number_of_positives(relevance) > 0) & ~unopposed(relevance, g)
        if not judged.any():
            return
    scores = scores_of(query, gallery, metric)
    for way in ("steps", "trapezoid", "first100"):
        found = retrieve_readings(query, gallery, readings, metric, (1, 5), way)
        for name, relevance in readings.items():
            judged = (number_of_positives(relevance) > 0) & ~unopposed(relevance, g)
            plain, result = by_sorting(scores, relevance), found[name]
            wanted = {
                "steps": [np.mean((1 + np.arange(len(r))) / r) if r else 0 for r in plain],
                "trapezoid": [trapezoid_of(r) for r in plain],
                "first100": [
                    sum((i + 1) / x for i, x in enumerate(r) if x <= 100) / max(1, min(len(r), 100))
                    for r in plain
                ],
            }[way]
            wanted = np.where(judged, wanted, np.nan)
            np.testing.assert_allclose(result.ap, wanted, rtol=0, atol=1e-9)
            first = np.array([r[0] if r else 0 for r in plain])
            first = np.minimum(first, 101) if way == "first100" else first
            np.testing.assert_array_equal(result.rank[judged], first[judged])
            alone = retrieve(query, gallery, relevance, metric, (1, 5), way)
            np.testing.assert_array_equal(alone.ap, result.ap)
            some = of_queries(result, judged)
            assert some.mean_ap == pytest.approx(result.mean_ap)
            assert some.mean_precision == pytest.approx(result.mean_precision)
            assert set(result.precision) == (set() if way == "steps" else {1, 5})
            ((mixed,),) = retrieve_mixed(
                query, [gallery], [np.zeros((1, g), int)], relevance, metric, way=way
            )
            np.testing.assert_allclose(mixed.ap, result.ap, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(mixed.rank, result.rank)


def test_queries_without_positives_are_counted_and_in_no_mean():
    rng = np.random.default_rng(3)
    query, gallery = rng.standard_normal((3, 5)), rng.standard_normal((20, 5))
    relevance = ByItem(Rows.of_lists([[0], [], [1, 2]]), Rows.of_lists([[], [], []]))
    for way in ("trapezoid", "first100"):
        result = retrieve(query, gallery, relevance, ks=(1, 10), way=way)
        assert (result.queries, result.without) == (2, 1)
        assert np.isnan(result.ap[1]) and result.mean_ap == pytest.approx(np.nanmean(result.ap))
        assert result.mean_precision[10] == pytest.approx(np.nanmean(result.precision[10]))
    nothing = ByItem(Rows.of_lists([[]] * 3), Rows.of_lists([[]] * 3))
    with pytest.raises(BctError, match="no query has a positive"):
        retrieve_readings(query, gallery, {"easy": relevance, "hard": nothing}, way="trapezoid")
    with pytest.raises(BctError, match="by 'first10'"):
        retrieve(query, gallery, relevance, way="first10")
    with pytest.raises(BctError, match="top-200 is asked for of the first 100"):
        retrieve(query, gallery, relevance, ks=(200,), way="first100")
