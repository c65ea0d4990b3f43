"""Retrieval against scikit-learn and a plain ranking.

Sign vectors of 16 dimensions have cosines that are multiples of 1/8, and small integers squared
distances that are integers: float32 holds these exactly, however a product is summed, so results
can be compared to the last bit, and most scores are tied.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from support.searches import leave_one_out, two_sets

from bct.errors import BctError
from bct.metrics import blocks, ranking
from bct.metrics import retrieval as r
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass, ByItem, Rows, by_query, positives, unopposed
from bct.metrics.retrieval import retrieve
from bct.streams import generator

SEEDS = st.integers(0, 10**6)
METRICS = st.sampled_from(r.METRICS)


def exact(rng, n, metric, dim=16):
    if metric == "cosine":
        return rng.choice([-1.0, 1.0], (n, dim)).astype(np.float32)
    return rng.integers(-3, 4, (n, dim)).astype(np.float32)


def score_matrix(query, gallery, metric):
    """float64 (Q, G), by the definition of each metric."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "l2":
        return -np.square(query[:, None] - gallery[None]).sum(2) / 2
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    return query @ gallery.T / lengths


def brute_force(scores, query_labels, gallery_labels, own=False):
    """(ap, rank) by scikit-learn, and by counting who comes before the best positive."""
    ap, rank = [], []
    for i, row in enumerate(scores):
        keep = np.arange(len(row)) != i if own else np.ones(len(row), bool)
        relevant = (gallery_labels == query_labels[i])[keep]
        row = row[keep]
        if not relevant.any():
            ap.append(np.nan)
            rank.append(0)
            continue
        if relevant.all():
            ap.append(np.nan)
            rank.append(-1)
            continue
        ap.append(average_precision_score(relevant, row))
        rank.append(1 + np.sum(row[~relevant] >= row[relevant].max()))
    return np.array(ap), np.array(rank)


def check(search, ap, rank):
    """Args: search: a function without arguments that gives a Retrieval."""
    found = rank > 0
    if not found.any():
        with pytest.raises(BctError, match=r"no item can be wrong|no query has a positive"):
            search()
        return
    result = search()
    np.testing.assert_allclose(result.ap, ap, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.rank, rank)
    counts = result.queries, result.without, result.unopposed
    assert counts == (found.sum(), (rank == 0).sum(), (rank < 0).sum())
    assert result.mean_ap == pytest.approx(ap[found].mean(), abs=1e-12)
    assert result.top == {k: pytest.approx(np.mean(rank[found] <= k)) for k in result.top}


@settings(max_examples=20)
@given(seed=SEEDS, metric=METRICS)
def test_two_sets_against_brute_force(seed, metric):
    rng = np.random.default_rng(seed)
    q, g, classes = rng.integers(1, [40, 60, 12])
    query, gallery = exact(rng, q, metric), exact(rng, g, metric)
    labels, others = rng.integers(0, classes + 3, q), rng.integers(0, classes, g)
    labels[0] = others[0]
    expected = brute_force(score_matrix(query, gallery, metric), labels, others)
    ks = (1, 2, 5, 99)
    check(lambda: two_sets(query, labels, gallery, others, metric, ks), *expected)


@settings(max_examples=20)
@given(seed=SEEDS, metric=METRICS)
def test_leave_one_out_against_brute_force(seed, metric):
    """Of one model, which takes half of the products, and of two, which takes all."""
    rng = np.random.default_rng(seed)
    n, classes = rng.integers(2, [50, 20])
    x, labels = exact(rng, n, metric), rng.integers(0, classes, n)
    labels[0] = labels[-1]
    for gallery in (None, exact(rng, n, metric)):
        scores = score_matrix(x, x if gallery is None else gallery, metric)
        expected = brute_force(scores, labels, labels, own=True)
        check(lambda g=gallery: leave_one_out(x, labels, g, metric), *expected)


@pytest.mark.parametrize("metric", r.METRICS)
def test_the_size_of_the_blocks_changes_nothing(metric):
    rng = np.random.default_rng(1)
    labels = np.unique(rng.zipf(1.5, 150) % 40, return_inverse=True)[1]  # a few classes hold most
    x, old = exact(rng, 150, metric), exact(rng, 150, metric)
    same, cross = (
        brute_force(score_matrix(x, gallery, metric), labels, labels, own=True)
        for gallery in (x, old)
    )
    for size in (1, 2, 7, 33, 64, 1000):
        for expected, (ap, rank) in (
            (same, ranking.by_pairs(x, labels, metric, side=size)),
            (same, ranking.by_rows(x, labels, x, labels, metric, own=True, block=size)),
            (cross, ranking.by_rows(x, labels, old, labels, metric, own=True, block=size)),
        ):
            np.testing.assert_allclose(ap, expected[0], rtol=0, atol=1e-12)
            np.testing.assert_array_equal(rank, expected[1])


def test_half_of_the_products_give_the_same_bits_as_all():
    rng = np.random.default_rng(2)
    x, labels = exact(rng, 300, "cosine"), np.arange(300) % 45
    rows = ranking.by_rows(x, labels, x, labels, "cosine", own=True, block=64)
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        pairs = ranking.by_pairs(x, labels, "cosine", side=70)
        assert torch.get_num_threads() == threads
        for ours, plain in zip(pairs, rows, strict=True):
            np.testing.assert_array_equal(ours, plain)
    torch.set_num_threads(before)


@pytest.mark.parametrize("metric", r.METRICS)
def test_real_numbers_against_scikit_learn_on_the_very_scores(metric):
    """Two models' embeddings; one block, so that the test can compute the same float32 product."""
    rng = np.random.default_rng(3)
    labels = np.sort(rng.integers(0, 12, 200))
    identity = rng.standard_normal((12, 32))
    x, old = (identity[labels] + 2 * rng.standard_normal((2, 200, 32))).astype(np.float32)
    old[50:90] = old[110:150]  # duplicates, mostly of another class
    order = np.arange(200)
    a, b = blocks.factors(x, order, metric)[0], blocks.factors(old, order, metric)[1]
    scores = (a @ b.T).numpy()
    assert np.allclose(scores, score_matrix(x, old, metric), atol=1e-4)
    expected = brute_force(scores, labels, labels, own=True)
    check(lambda: leave_one_out(x, labels, old, metric), *expected)
    expected = brute_force(scores[:77], labels[:77], labels)
    a = blocks.factors(x[:77], order[:77], metric)[0]
    expected = brute_force((a @ b.T).numpy(), labels[:77], labels)
    check(lambda: two_sets(x[:77], labels[:77], old, labels, metric), *expected)


@settings(max_examples=30)
@given(seed=SEEDS, metric=METRICS)
def test_the_order_of_queries_and_gallery_changes_nothing(seed, metric):
    rng = np.random.default_rng(seed)
    query, gallery = exact(rng, 30, metric), exact(rng, 50, metric)
    labels, others = rng.integers(0, 9, 30), np.arange(50) % 8
    result = two_sets(query, labels, gallery, others, metric)
    p, q = rng.permutation(50), rng.permutation(30)
    again = two_sets(query[q], labels[q], gallery[p], others[p], metric)
    np.testing.assert_array_equal(again.ap, result.ap[q])
    np.testing.assert_array_equal(again.rank, result.rank[q])
    one = leave_one_out(gallery, others, metric=metric)
    again = leave_one_out(gallery[p], others[p], metric=metric)
    np.testing.assert_array_equal(again.ap, one.ap[p])
    np.testing.assert_array_equal(again.rank, one.rank[p])


@settings(max_examples=20)
@given(seed=SEEDS)
def test_a_new_negative_never_helps_and_a_far_one_does_nothing(seed):
    rng = np.random.default_rng(seed)
    query, gallery = exact(rng, 20, "l2"), exact(rng, 30, "l2")
    labels, others = rng.integers(0, 6, 20), np.arange(30) % 6
    before = two_sets(query, labels, gallery, others, "l2")
    near = np.concatenate([gallery, exact(rng, 5, "l2")])
    after = two_sets(query, labels, near, np.append(others, [99] * 5), "l2")
    assert (after.ap <= before.ap + 1e-12).all() and (after.rank >= before.rank).all()
    far = np.concatenate([gallery, np.full((5, 16), 50, np.float32)])
    after = two_sets(query, labels, far, np.append(others, [99] * 5), "l2")
    np.testing.assert_array_equal(after.ap, before.ap)
    np.testing.assert_array_equal(after.rank, before.rank)


def test_l2_ranks_unit_vectors_as_cosine_does():
    rng = np.random.default_rng(4)
    labels = np.arange(120) % 10
    x = rng.standard_normal((10, 24))[labels] + 1.5 * rng.standard_normal((120, 24))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = x.astype(np.float32)
    cosine, l2 = leave_one_out(x, labels), leave_one_out(x, labels, metric="l2")
    np.testing.assert_allclose(cosine.ap, l2.ap, atol=1e-12)
    np.testing.assert_array_equal(cosine.rank, l2.rank)
    longer = x * rng.uniform(0.5, 2, (120, 1)).astype(np.float32)
    scaled = leave_one_out(longer, labels)
    np.testing.assert_allclose(scaled.ap, cosine.ap, atol=1e-12)
    assert leave_one_out(longer, labels, metric="l2").mean_ap < cosine.mean_ap


def test_l2_depends_on_lengths_by_hand():
    query, gallery = np.array([[1.0, 0.0]]), np.array([[3.0, 0.0], [0.5, 0.5]])
    labels = np.array([7]), np.array([7, 8])
    assert two_sets(query, labels[0], gallery, labels[1]).rank.tolist() == [1]
    assert two_sets(query, labels[0], gallery, labels[1], "l2").rank.tolist() == [2]


def test_ties_count_against_the_query():
    """Positive and negative are one vector: the negative comes first, in either metric, and the
    average precision takes both together."""
    vector = np.array([[0.3, 0.7, -0.2]], np.float32)
    for metric in r.METRICS:
        result = two_sets(
            vector, np.array([1]), vector.repeat(3, 0), np.array([1, 2, 1]), metric, ks=(1, 2)
        )
        assert result.top == {1: 0.0, 2: 1.0}
        assert result.ap.tolist() == [pytest.approx(2 / 3)]
    alike = leave_one_out(np.ones((6, 4), np.float32), np.array([0, 0, 0, 1, 1, 1]))
    assert alike.rank.tolist() == [4] * 6 and alike.ap.tolist() == [pytest.approx(2 / 5)] * 6


def test_the_own_image_is_left_out_and_its_duplicate_is_not():
    x = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    result = leave_one_out(x, np.array([0, 0, 1, 1]))
    assert result.top[1] == 1.0 and result.mean_ap == 1.0
    other = leave_one_out(x, np.array([0, 1, 0, 1]))  # the duplicate is of another class
    assert other.rank.tolist() == [3, 2, 3, 3]
    # of two models the old embedding of the same image is left out, too
    old = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    assert leave_one_out(x, np.array([0, 0, 1, 1]), old).rank.tolist() == [3, 2, 2, 3]


def test_queries_without_a_positive_are_counted_apart():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 8))
    result = leave_one_out(x, np.array(["a", "b", "a", "c", "b", "d"]))
    assert (result.queries, result.without) == (4, 2)
    assert np.isnan(result.ap[[3, 5]]).all() and result.rank[[3, 5]].tolist() == [0, 0]
    assert result.mean_ap == pytest.approx(np.nanmean(result.ap))
    half = two_sets(x[:2], np.array([4, 5]), x[2:], np.array([4, 4, 6, 6]))
    assert (half.queries, half.without) == (1, 1) and half.rank[1] == 0


def test_one_positive_gives_the_reciprocal_rank():
    rng = np.random.default_rng(6)
    result = leave_one_out(rng.standard_normal((60, 5)), np.arange(60) // 2)
    np.testing.assert_allclose(result.ap, 1 / result.rank, atol=1e-15)


def test_random_features_hit_by_chance():
    """The reference evaluators report 100% here: their path for a separate gallery is wrong."""
    rng = np.random.default_rng(7)
    query, gallery = rng.standard_normal((400, 16)), rng.standard_normal((200, 16))
    result = two_sets(query, np.arange(400) % 10, gallery, np.arange(200) % 10)
    assert abs(result.top[1] - 0.1) < 0.06 and abs(result.mean_ap - 0.1) < 0.05


def test_types_of_features_and_memory_maps(tmp_path):
    rng = np.random.default_rng(8)
    x, labels = exact(rng, 40, "l2"), np.arange(40) % 7
    expected = leave_one_out(x, labels, metric="l2")
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for features in (x.astype(np.float16), x.astype(np.float64), mapped, x[:, ::-1]):
        result = leave_one_out(features, labels, metric="l2")
        np.testing.assert_array_equal(result.ap, expected.ap)
    for metric in r.METRICS:  # the caller's array is left as it was
        kept = x.copy()
        leave_one_out(x, labels, metric=metric)
        np.testing.assert_array_equal(x, kept)


def test_a_zero_vector_is_orthogonal_to_everything():
    x = np.array([[0, 0], [1, 0], [1, 1], [-1, 0]], np.float32)
    result = two_sets(x[:1], np.array([0]), x[1:], np.array([0, 1, 1]))
    assert result.rank.tolist() == [3] and result.ap.tolist() == [pytest.approx(1 / 3)]
    result = two_sets(x[1:2], np.array([0]), x[[0, 2, 3]], np.array([0, 1, 1]))
    assert result.rank.tolist() == [2]


def test_classes_too_large_for_the_thresholds_take_the_plain_way(monkeypatch):
    rng = np.random.default_rng(9)
    x, labels = exact(rng, 90, "cosine"), np.arange(90) % 2
    expected = brute_force(score_matrix(x, x, "cosine"), labels, labels, own=True)
    for module in (r, ranking):
        monkeypatch.setattr(module, "SCORES", 2000)
    monkeypatch.setattr(r, "by_pairs", None)  # 90 queries of 44 positives are more than 2,000
    check(lambda: leave_one_out(x, labels), *expected)


@pytest.mark.parametrize("metric", r.METRICS)
def test_memory_stays_within_the_blocks(metric, monkeypatch):
    """No block of scores is larger than what SCORES allows, but for a class that must be whole."""
    sizes = []
    count = ranking.count_at_least

    def watched(scores, *rest):
        sizes.append(scores.size)
        return count(scores, *rest)

    monkeypatch.setattr(ranking, "count_at_least", watched)
    monkeypatch.setattr(ranking, "SCORES", 5000)
    monkeypatch.setattr(blocks, "LANES", 1)  # no padding
    rng = np.random.default_rng(10)
    x, labels = exact(rng, 300, metric), np.arange(300) % 30
    leave_one_out(x, labels, x.copy(), metric)
    assert max(sizes) <= 5000 and sum(sizes) == 300 * 300
    sizes.clear()
    ranking.by_pairs(x, labels, metric, side=64)
    assert max(sizes) <= 64 * 64 and sum(sizes) == 300 * 300


def test_an_error_in_the_threads_ends_it(monkeypatch):
    """No thread waits for the memory of one that failed."""

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(ranking, "count_at_least", no_memory)
    x, labels = exact(np.random.default_rng(11), 300, "l2"), np.arange(300) % 30
    for by in (
        lambda: ranking.by_pairs(x, labels, "l2", side=30),
        lambda: ranking.by_rows(x, labels, x, labels, "l2", own=True, block=30),
    ):
        with pytest.raises(MemoryError):
            by()


def test_errors():
    x, y = np.ones((4, 3), np.float32), np.array([0, 0, 1, 1])
    broken, huge = x.copy(), x * np.float32(1e19)
    broken[2, 1] = np.nan
    for wrong, call in {
        "queries have 3 dimensions, the gallery 2": lambda: two_sets(x, y, x[:, :2], y),
        r"4 query embeddings, their labels are \(3,\)": lambda: leave_one_out(x, y[:3]),
        r"gallery embeddings are \(0, 3\)": lambda: two_sets(x, y, x[:0], y[:0]),
        r"query embeddings are \(3,\)": lambda: leave_one_out(x[0], y[:3]),
        "4 queries and 3 gallery rows": lambda: leave_one_out(x, y, x[:3]),
        "NaN": lambda: leave_one_out(broken, y),
        "row 0 is not finite": lambda: two_sets(x, y, broken / 0.0, y, "l2"),
        "too long for float32": lambda: leave_one_out(huge, y, metric="l2"),
        "metric is 'dot'": lambda: leave_one_out(x, y, metric="dot"),
        r"k of \(0,\)": lambda: leave_one_out(x, y, ks=(0,)),
        r"k of \(\)": lambda: leave_one_out(x, y, ks=()),
        "no query has": lambda: two_sets(x, y, x, y + 2),
        "no query has a": lambda: leave_one_out(x, np.arange(4)),
        "no query has a positive": lambda: leave_one_out(x, np.arange(4), x.copy()),
    }.items():
        with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(BctError, match=wrong):
            call()


# ---- parts of a result


def noisy(seed, n=200, classes=12, ks=(1, 3)):
    """Results of two models for the same queries, some of them without a positive."""
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, classes, n - 2), [98, 99])
    own = rng.standard_normal((100, 16))[labels]
    x, old = own + 1.5 * rng.standard_normal((2, n, 16))
    return labels, leave_one_out(x, labels, ks=ks), leave_one_out(x, labels, old, ks=ks)


def test_some_queries_search_the_whole_gallery():
    """Not the same as leaving the other classes out of the gallery, which would be easier."""
    rng = np.random.default_rng(11)
    x, labels = exact(rng, 80, "l2"), np.arange(80) % 9
    result, old = leave_one_out(x, labels, metric="l2"), labels < 4
    part = r.of_queries(result, old)
    scores = score_matrix(x, x, "l2")
    ap, rank = brute_force(scores, labels, labels, own=True)
    check(lambda: part, ap[old], rank[old])
    assert part.mean_ap < leave_one_out(x[old], labels[old], metric="l2").mean_ap
    with pytest.raises(BctError, match="no query has"):
        r.of_queries(result, labels > 8)


def test_cmc_is_top_k_for_every_k():
    _, result, _ = noisy(12, ks=(1, 2, 3, 4, 5, 6))
    np.testing.assert_array_equal(r.cmc(result, 6), list(result.top.values()))
    assert r.cmc(result, 500)[-1] == 1 and (np.diff(r.cmc(result, 50)) >= 0).all()


def test_figures_of_each_class():
    labels, result, _ = noisy(13)
    figures = r.by_class(result, labels)
    assert figures.labels.tolist() == sorted(set(labels) - {98, 99})
    for c, label in enumerate(figures.labels):
        part = r.of_queries(result, labels == label)
        assert figures.queries[c] == part.queries
        assert figures.mean_ap[c] == pytest.approx(part.mean_ap, abs=1e-12)
        assert {k: v[c] for k, v in figures.top.items()} == pytest.approx(part.top)
    assert np.average(figures.mean_ap, weights=figures.queries) == pytest.approx(result.mean_ap)


def test_bootstrap_is_the_mean_of_drawn_classes():
    """Each resample against a plain one, which copies the queries of each class that was drawn."""
    labels, new, old = noisy(14, n=60)
    found = new.rank > 0
    values, units = np.stack([new.ap, old.ap])[:, found], labels[found]
    means = r.bootstrap_means(values, units, resamples=20, seed=3)
    stream = generator("cpu", 3, "bootstrap over classes")
    classes = np.unique(units)
    for row in means:
        drawn = torch.randint(len(classes), (len(classes),), generator=stream).numpy()
        copies = np.concatenate([np.flatnonzero(units == classes[c]) for c in drawn])
        np.testing.assert_allclose(row, values[:, copies].mean(1), atol=1e-12)


def test_bootstrap_spreads_as_class_means_do():
    """Classes of one size: the standard error is that of the mean of C class means; queries as
    units, which are more alike within a class, would give a smaller one."""
    rng = np.random.default_rng(15)
    own = rng.standard_normal(50)
    values = (own[:, None] + 0.5 * rng.standard_normal((50, 20))).ravel()
    units = np.repeat(np.arange(50), 20)
    expected = values.reshape(50, 20).mean(1).std() / np.sqrt(50)
    assert r.bootstrap_means(values[None], units, 3000).std() == pytest.approx(expected, rel=0.1)
    single = r.bootstrap_means(values[None], np.arange(1000), 500).std()
    assert single < expected / 2
    same = r.bootstrap_means(np.stack([values, values]), units, 10)
    assert (same[:, 0] == same[:, 1]).all()
    for wrong, call in {
        "units": lambda: r.bootstrap_means(values, units),
        "systems, queries": lambda: r.bootstrap_means(values[None], units[1:]),
        "not finite": lambda: r.bootstrap_means(np.full((1, 3), np.nan), np.arange(3)),
    }.items():
        with pytest.raises(BctError, match=wrong):
            call()


# ---- positive and ignored items of each query


def by_sorting(scores, positive, ignored):
    """(ap, rank) of one query by a plain sort: items in descending order, those that are ignored
    left out, a negative before a positive of its score."""
    kept = [j for j in range(len(scores)) if j not in ignored]
    order = sorted(kept, key=lambda j: (-scores[j], j in positive))
    hits = [j in positive for j in order]
    if not any(hits) or all(hits):
        return np.nan, -int(any(hits))
    precisions = []
    for p in positive:  # those of one score are taken together
        last = max(k for k, j in enumerate(order) if scores[j] == scores[p])
        precisions.append(sum(hits[: last + 1]) / (last + 1))
    return np.mean(precisions), 1 + hits.index(True)


def random_items(rng, q, g):
    """Positive and ignored items of each query, of any number; some have no positive."""
    positive, ignored = [], []
    for _ in range(q):
        chosen = rng.permutation(g)[: rng.integers(0, g + 1)]
        cut = rng.integers(0, len(chosen) + 1) * rng.integers(0, 2)
        positive.append(chosen[:cut])
        ignored.append(chosen[cut:])
    positive[0], ignored[0] = np.array([g - 1]), ignored[0][ignored[0] != g - 1]
    return positive, ignored


@settings(max_examples=40)
@given(seed=SEEDS, metric=METRICS)
def test_items_of_each_query_against_a_plain_sort(seed, metric):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, [20, 30])
    query, gallery = exact(rng, q, metric), exact(rng, g, metric)
    positive, ignored = random_items(rng, q, g)
    relevance = ByItem(Rows.of_lists(positive), Rows.of_lists(ignored))
    scores = score_matrix(query, gallery, metric)
    plain = [by_sorting(*row) for row in zip(scores, map(set, positive), map(set, ignored))]  # noqa: B905
    expected = [np.array(column) for column in zip(*plain, strict=True)]
    check(lambda: retrieve(query, gallery, relevance, metric, ks=(1, 2, 5)), *expected)
    assert positives(relevance).tolist() == [len(rows) for rows in positive]
    assert unopposed(relevance, g).tolist() == (expected[1] < 0).tolist()
    judged = expected[1] >= 0
    for block in (1, 3):
        ap, rank = ranking.by_item(query, gallery, relevance, metric, block)
        np.testing.assert_allclose(ap[judged], expected[0][judged], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(rank[judged], expected[1][judged])


def test_ignored_items_at_the_top_by_hand():
    """The query, its junk and a tie: gallery items 0 and 1 score highest and are ignored."""
    query, gallery = np.array([[1.0, 0.0]]), np.array([[1, 0], [2, 0], [1, 1], [1, 1], [0, 1.0]])

    def one(positive, ignored):
        found = retrieve(
            query, gallery, ByItem(Rows.of_lists([positive]), Rows.of_lists([ignored]))
        )
        return found.rank[0], found.ap[0]

    assert one([2, 3], [0, 1]) == (1, 1.0)
    assert one([2, 3], []) == (3, 0.5)
    assert one([2], [0, 1]) == (2, 0.5)  # item 3 scores as high and counts against it
    assert one([3, 4], [1, 2]) == (2, (1 / 2 + 2 / 3) / 2)
    with pytest.raises(BctError, match="no item can be wrong"):
        one([2, 4], [0, 1, 3])
    with pytest.raises(BctError, match="no query has a positive"):
        one([], [0])


@settings(max_examples=20)
@given(seed=SEEDS, metric=METRICS, own=st.booleans())
def test_classes_with_ignored_items_against_a_plain_sort(seed, metric, own):
    """As where a gallery has some of the queries' own images; a few queries at a time."""
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 30)
    query, gallery = exact(rng, n, metric), exact(rng, n, metric)
    labels = rng.integers(0, 3, n)
    others = labels if own else rng.integers(0, 3, n)
    ignored = [
        [k for k in rng.permutation(n)[: rng.integers(0, 3)].tolist() if k != i] for i in range(n)
    ]
    relevance = ByClass(labels, others, own, Rows.of_lists(ignored))
    plain = []
    for i, row in enumerate(score_matrix(query, gallery, metric)):
        apart = {*ignored[i], *([i] if own else [])}
        plain.append(by_sorting(row, set(np.flatnonzero(others == labels[i])) - apart, apart))
    expected = [np.array(column) for column in zip(*plain, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "_PART", 7)
        check(lambda: retrieve(query, gallery, relevance, metric), *expected)
    versions = np.repeat([[0], [1]], n, axis=1)
    if (expected[1] > 0).any():
        (mixed,) = retrieve_mixed(query, [gallery, query], [versions], relevance, metric)
        check(lambda: mixed[0], *expected)


def test_queries_that_can_not_be_wrong_are_counted_apart():
    """Of three classes' galleries; noise has top-1 1 where only its own class is."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 8))
    one = Rows.of_lists([[0], [0], [0]]), Rows.of_lists([[1, 2], [1], []])
    result = retrieve(x[:3], x[3:], ByItem(*one))
    assert (result.queries, result.without, result.unopposed) == (2, 0, 1)
    assert result.rank[0] == -1 and np.isnan(result.ap[0])
    part = r.of_queries(result, np.array([True, True, False]))
    assert (part.queries, part.unopposed) == (1, 1)
    for call in (
        lambda: leave_one_out(x, np.zeros(6, int)),
        lambda: two_sets(x[:3], np.zeros(3), x[3:], np.zeros(3)),
        lambda: r.of_queries(result, np.array([True, False, False])),
    ):
        with pytest.raises(BctError, match="no item can be wrong"):
            call()


def test_ignored_items_have_to_be_there_and_once():
    labels = np.array([0, 0, 1])
    for lists, own, word in (
        ([[0], [1]], False, "not those of 3 queries"),
        ([[0], [1], [3]], False, "outside the gallery of 3"),
        ([[1, 1], [], []], False, "twice"),
        ([[0], [], []], True, "twice"),
    ):
        relevance = ByClass(labels, labels, own, Rows.of_lists(lists))
        with pytest.raises(BctError, match=word):
            retrieve(np.eye(3), np.eye(3), relevance)


@settings(max_examples=20)
@given(seed=SEEDS, metric=METRICS, own=st.booleans())
def test_items_made_from_classes_give_what_classes_give(seed, metric, own):
    rng = np.random.default_rng(seed)
    n, classes = rng.integers(2, [60, 20])
    x, old = exact(rng, n, metric), exact(rng, n, metric)
    labels, others = rng.permuted(np.arange(n) % classes), rng.permuted(np.arange(n) % classes)
    relevance = ByClass(labels, labels if own else others, own)
    if not (positives(relevance) * ~unopposed(relevance, n)).any():
        return
    items = by_query(relevance)(np.arange(n))
    np.testing.assert_array_equal(positives(items), positives(relevance))
    result, of_classes = (retrieve(x, old, either, metric) for either in (items, relevance))
    np.testing.assert_array_equal(result.rank, of_classes.rank)
    np.testing.assert_array_equal(result.ap, of_classes.ap)
    some = rng.permutation(n)[:7]
    for side, chosen in zip(items, by_query(relevance)(some), strict=True):
        assert [set(part) for part in np.split(chosen.rows, chosen.offsets[1:-1])] == [
            set(side.rows[side.offsets[i] : side.offsets[i + 1]]) for i in some
        ]


def test_items_in_blocks_of_bounded_size(monkeypatch):
    sizes = []
    count = ranking.count_at_least

    def watched(scores, *rest):
        sizes.append(scores.size)
        return count(scores, *rest)

    monkeypatch.setattr(ranking, "count_at_least", watched)
    monkeypatch.setattr(ranking, "SCORES", 5000)
    rng = np.random.default_rng(16)
    x = exact(rng, 300, "l2")
    relevance = by_query(ByClass(np.arange(300) % 30, np.arange(300) % 30))(np.arange(300))
    retrieve(x, exact(rng, 300, "l2"), relevance, "l2")
    assert max(sizes) <= 5000 and len(sizes) > 18


def test_relevance_that_does_not_fit():
    x, none = np.ones((3, 2), np.float32), Rows.of_lists([[], [], []])
    one = Rows.of_lists([[0], [], []])
    for wrong, relevance in {
        "positive rows are not those of 3": ByItem(Rows.of_lists([[0], [1]]), none),
        "ignored rows are not those of 3": ByItem(one, Rows(one.offsets + 1, one.rows)),
        "outside the gallery of 3": ByItem(Rows.of_lists([[3], [], []]), none),
        "outside the gallery": ByItem(one, Rows.of_lists([[], [-1], []])),
        "twice": ByItem(Rows.of_lists([[], [1, 1], []]), none),
        "as positive and as ignored": ByItem(one, one),
        "different labels": ByClass(np.arange(3), np.arange(3) + 1, True),
    }.items():
        with pytest.raises(BctError, match=wrong):
            retrieve(x, x, relevance)
