"""k-reciprocal re-ranking against sets and loops; golden values are in test_landmark_goldens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.metrics import reranking as r
from bct.metrics.relevance import ByClass
from bct.metrics.reranking import reranked, retrieve_reranked
from bct.metrics.retrieval import retrieve


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain(query, gallery, k1, k2, weight):
    """The definition, item by item, with sets."""
    x = unit(np.concatenate([query, gallery]).astype(np.float64))
    n = len(x)
    distance = np.square(x[:, None] - x[None]).sum(2)
    distance /= distance.max(axis=1, keepdims=True)
    rank = np.argsort(distance, axis=1, kind="stable")

    def reciprocal(i, k):
        return {j for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        more = [reciprocal(c, int(np.around(k1 / 2))) for c in own]
        star = own.union(*(near for near in more if len(near & own) > 2 / 3 * len(near)))
        star = sorted(star)
        v[i, star] = np.exp(-distance[i, star])
    v /= v.sum(axis=1, keepdims=True)
    v = np.stack([v[rank[i, :k2]].mean(axis=0) for i in range(n)])
    shared = np.minimum(v[: len(query), None], v[None]).sum(2)
    whole = (1 - weight) * (1 - shared / (2 - shared)) + weight * distance[: len(query)]
    return whole[:, len(query) :]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_distances_against_the_definition(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, [12, 40])
    k1, k2 = rng.integers(1, q + g), rng.integers(1, q + g + 1)
    centres = rng.standard_normal((4, 6))
    query, gallery = (centres[rng.integers(0, 4, n)] + rng.standard_normal((n, 6)) for n in (q, g))
    weight = float(rng.choice([0, 0.3, 1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "_BLOCK", int(rng.integers(1, 30)))
        patch.setattr(r, "_PAIRS", int(rng.integers(1, 100)))
        blocks = list(reranked(query, gallery * 5, int(k1), int(k2), weight))
    found = np.concatenate([block for _, block in blocks])
    assert [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]
    wanted = plain(query, gallery, k1, k2, weight)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_the_half_is_rounded_to_even():
    """k1 = 5: 2.5 becomes 2, not 3."""
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((6, 4)), rng.standard_normal((40, 4))
    ((_, found),) = reranked(query, gallery, 5, 1, 0.0)
    np.testing.assert_allclose(found, plain(query, gallery, 5, 1, 0.0), atol=1e-12)


def test_the_distance_alone_is_plain_retrieval():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 30), rng.integers(0, 5, 80)
    centres = rng.standard_normal((5, 8))
    query, gallery = (centres[of] + 2 * rng.standard_normal((len(of), 8)) for of in labels)
    relevance = ByClass(*labels)
    alone = retrieve(query, gallery, relevance)
    weighed = retrieve_reranked(query, gallery, {"": relevance}, weight=1.0)[""]
    np.testing.assert_allclose(weighed.ap, alone.ap, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(weighed.rank, alone.rank)
    better = retrieve_reranked(query, gallery, {"": relevance}, way="trapezoid", ks=(1, 10))[""]
    assert better.precision[10].shape == (30,)
    published = retrieve_reranked(query, gallery, {"": relevance}, parity="published")[""]
    assert published.mean_ap == pytest.approx(
        retrieve_reranked(query, gallery, {"": relevance})[""].mean_ap, abs=0.01
    )


def test_equal_rows_are_equally_far():
    """Items of one image: nearest neighbours that tie have an order all the same."""
    rng = np.random.default_rng(2)
    gallery = np.repeat(rng.standard_normal((10, 5)), 4, axis=0)
    ((_, found),) = reranked(rng.standard_normal((3, 5)), gallery, 4, 2)
    assert np.isfinite(found).all() and (found >= -1e-12).all()


def test_reranking_refuses():
    x = np.random.default_rng(3).standard_normal((5, 3))
    for how, word in (
        ({"k1": 0}, "neighbourhoods of 0"),
        ({"k1": 10}, "neighbourhoods of 10 and 6 among 10"),
        ({"k1": 3, "k2": 11}, "neighbourhoods"),
        ({"k1": 3, "weight": 1.5}, "weight is 1.5"),
        ({"k1": 3, "parity": "float16"}, "parity"),
    ):
        with pytest.raises(BctError, match=word):
            next(reranked(x, x, **how))
    x[2, 1] = np.nan
    with pytest.raises(BctError, match="not finite"):
        next(reranked(x, x, 3, 2))
