"""What comes out by chance: of searches, and of two models that have nothing in common."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pages import Nothing

from bct.metrics.average_precision import average_precision
from bct.metrics.chance import alike_by_item, chance_ap
from bct.metrics.positions import Positions
from bct.metrics.relevance import ByClass, ByItem, Rows
from bct.metrics.retrieval import retrieve
from bct.protocols.evidence import chance_level, few, same_embeddings
from bct.protocols.protocol import Pairs, Protocol, Search

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("positives", "items"), [(1, 7), (3, 9), (5, 5), (1, 1), (2, 30)])
def test_average_precision_of_random_orders(positives, items):
    found = []
    for _ in range(3000):
        right = RNG.permutation(np.arange(items) < positives)
        found.append((np.cumsum(right) / np.arange(1, items + 1))[right].mean())
    want, close = np.mean(found), 4 * np.std(found) / np.sqrt(3000) + 1e-9
    assert chance_ap(np.array([positives]), items)[0] == pytest.approx(want, abs=close)


@pytest.mark.parametrize("way", ["trapezoid", "first100"])
@pytest.mark.parametrize(("positives", "items"), [(1, 7), (5, 5), (1, 1), (4, 300), (130, 400)])
def test_other_average_precisions_of_random_orders(way, positives, items):
    found = []
    for _ in range(2000):
        places = np.sort(RNG.permutation(items)[:positives]) + 1
        one = Positions(np.array([0, positives]), places)
        found.append(average_precision(one, way)[0])
    want, close = np.mean(found), 4 * np.std(found) / np.sqrt(2000) + 1e-9
    assert chance_ap(np.array([positives]), items, way)[0] == pytest.approx(want, abs=close)


def test_chance_of_a_search_is_what_noise_reaches():
    labels = np.repeat(np.arange(10), 6)
    n, rows = len(labels), np.arange(len(labels))
    others = [np.flatnonzero((labels == labels[i]) & (rows != i)) for i in rows]
    relevance = ByItem(Rows.of_lists(others), Rows.of_lists([[i] for i in rows]))
    halves = np.arange(0, n, 2), np.arange(1, n, 2)
    for search in (
        Search(rows, rows, ByClass(labels, labels, leave_one_out=True)),
        Search(rows, rows, relevance),
        Search(*halves, ByClass(*(labels[half] for half in halves))),
    ):
        noise = [
            retrieve(x[search.queries], y[search.gallery], search.relevance).mean_ap
            for x, y in RNG.standard_normal((60, 2, n, 64)).astype(np.float32)
        ]
        level = chance_level(Protocol("x", Nothing(n), search=search), None)
        assert level == pytest.approx(np.mean(noise), abs=0.01)


def test_how_alike_two_spaces_are():
    x = RNG.standard_normal((500, 32)).astype(np.float32)
    assert alike_by_item(x, x) == alike_by_item(x, 1e-20 * x) == 1
    assert alike_by_item(x, RNG.standard_normal(x.shape)) == pytest.approx(0.5, abs=0.08)
    assert alike_by_item(x, x + RNG.standard_normal(x.shape)) > 0.95
    assert alike_by_item(x, np.zeros_like(x)) == 0.5  # ties
    assert alike_by_item(x[:1], x[:1]) == 0.5  # nothing to compare with
    assert alike_by_item(x[:2], x[:2]) == 1
    many = np.tile(x, (30, 1))  # more than are looked at
    assert alike_by_item(many, many + 1e-3) > 0.95


@given(n=st.integers(2, 40), lie=st.integers(0, 39))
def test_the_same_embeddings(n, lie):
    x = np.random.default_rng(n).standard_normal((n, 8)).astype(np.float32)
    assert same_embeddings(x, x) and same_embeddings(x, 3 * x.astype(np.float16))
    other = x.copy()
    other[lie % n] += 0.01 * np.abs(x).max()
    assert not same_embeddings(x, other) and not same_embeddings(x, x[:, :4])


@pytest.mark.parametrize(
    ("subjects", "said"),
    [
        ([0] * 9, "9 genuine pairs of 1 subject"),
        ([0] * 30, "30 genuine pairs of 1 subject"),
        ([0, 1, 2], "3 genuine pairs of 3 subjects"),
        ([0], "1 genuine pair of 1 subject"),
        ([0] * 5 + [1] * 5, ""),
        (None, "9 genuine pairs"),
    ],
)
def test_few_pairs(subjects, said):
    of = np.zeros(9, int) if subjects is None else np.array(subjects)
    n = len(of)
    first = np.arange(2 * n)  # of each image: a genuine pair, then an impostor
    pairs = Pairs(first, np.roll(first, 1), np.arange(2 * n) < n)
    whose = None if subjects is None else np.tile(of, 2)
    assert few(Protocol("x", Nothing(2 * n), pairs=pairs, subjects=whose)) == said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 0, 1, 2, 3, 4, 5], "2 queries of 1 class"),
        ([0] * 12 + [1], "12 queries of 1 class"),
        ([0] * 12, "0 queries of 0 classes"),  # whatever they find, it is right
        ([0] * 6 + [1] * 6, ""),
        ([0, 0, 1, 1], "4 queries of 2 classes"),
    ],
)
def test_few_queries(labels, said):
    rows, labels = np.arange(len(labels)), np.array(labels)
    relevance = ByClass(labels, labels, leave_one_out=True)
    assert few(Protocol("x", Nothing(len(rows)), search=Search(rows, rows, relevance))) == said
