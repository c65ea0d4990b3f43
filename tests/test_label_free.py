"""Label-free comparison against scipy's Procrustes solution, brute force and geometry by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from bct.errors import BctError
from bct.metrics import label_free
from bct.metrics.label_free import neighbour_overlap, procrustes_residual


def normal(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def rotation(seed, d):
    return ortho_group.rvs(d, random_state=seed)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_residual_against_scipy(seed):
    new, old = normal(seed, 60, 7), normal(seed + 1, 60, 7)
    r, _ = orthogonal_procrustes(unit(new), unit(old))
    expected = np.square(unit(new) @ r - unit(old)).sum() / 60
    assert procrustes_residual(new, old) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_residual_is_blind_to_rotations_and_lengths(seed):
    new, old = normal(seed, 60, 7), normal(seed + 1, 60, 7)
    lengths = np.exp(normal(seed + 2, 60, 1))
    turned = lengths * (new @ rotation(seed, 7))
    residual = procrustes_residual(new, old)
    assert residual > 0.1
    assert procrustes_residual(turned, old) == pytest.approx(residual, abs=1e-5)
    assert procrustes_residual(old, new) == pytest.approx(residual, abs=1e-5)
    assert procrustes_residual(turned, new) == pytest.approx(0, abs=1e-6)
    assert procrustes_residual(new, new) == pytest.approx(0, abs=1e-6)


def test_residual_by_hand():
    """The new embeddings are all alike and best turned to the mean direction (3, 1) / sqrt(10)."""
    old = np.array([[1, 0], [0, 2], [5, 0], [1, 0]])
    new = np.array([[0, 1], [0, 3], [0, 1], [0, 1]])
    assert procrustes_residual(new, old) == pytest.approx(2 - 2 * math.sqrt(10) / 4, abs=1e-6)
    opposite = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]])
    assert procrustes_residual(new, opposite) == pytest.approx(2)  # no turn helps
    assert procrustes_residual(-old, old) == pytest.approx(0, abs=1e-6)


def overlap_by_brute_force(query_a, gallery_a, query_b, gallery_b, k, exclude_self):
    shares = []
    for i in range(len(query_a)):
        nearest = []
        for query, gallery in ((query_a, gallery_a), (query_b, gallery_b)):
            cosine = unit(gallery) @ query[i]
            ranked = [j for j in np.argsort(-cosine) if j != i or not exclude_self]
            nearest.append(set(ranked[:k]))
        shares.append(len(nearest[0] & nearest[1]) / k)
    return np.mean(shares)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 10))
def test_overlap_against_brute_force(seed, k):
    systems = normal(seed, 9, 4), normal(seed + 1, 30, 4), normal(seed + 2, 9, 6)
    systems = *systems, np.pad(systems[1], ((0, 0), (1, 1))) + 0.3 * normal(seed + 3, 30, 6)
    expected = overlap_by_brute_force(*systems, k, False)
    assert neighbour_overlap(*systems, k) == pytest.approx(expected)


@pytest.mark.parametrize("block", [7, 1 << 13])
def test_overlap_within_one_set_leaves_the_item_itself_out(block, monkeypatch):
    monkeypatch.setattr(label_free, "BLOCK", block)  # 30 items in 5 blocks: columns are shifted
    a = normal(0, 30, 4)
    b = a + 0.5 * normal(1, 30, 4)
    without = neighbour_overlap(a, a, b, b, 3, exclude_self=True)
    assert without == pytest.approx(overlap_by_brute_force(a, a, b, b, 3, True))
    assert neighbour_overlap(a, a, b, b, 3) == pytest.approx(
        overlap_by_brute_force(a, a, b, b, 3, False)
    )
    assert neighbour_overlap(a, a, b, b, 1) == 1  # everyone is nearest to oneself
    assert without < 1


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 30))
def test_the_same_space_overlaps_wholly(seed, k):
    query, gallery = normal(seed, 10, 5), normal(seed + 1, 30, 5)
    assert neighbour_overlap(query, gallery, query, gallery, k) == 1
    turn = rotation(seed, 5)
    turned = neighbour_overlap(query, gallery, 2 * query @ turn, gallery @ turn, k)
    assert turned >= 1 - 1 / (10 * k)  # rounding may swap one pair that is equally near
    assert neighbour_overlap(query, gallery, query[::-1].copy(), gallery, 30) == 1  # all there are


def test_unrelated_spaces_share_what_chance_shares():
    x = [normal(seed, n, 8) for seed, n in enumerate((400, 200, 400, 200))]
    assert neighbour_overlap(*x, 20) == pytest.approx(20 / 200, abs=0.01)


def test_overlap_by_hand():
    gallery = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    query_a = np.array([[3, 1], [-1, 2]], np.float32)  # nearest: 0, 1 and 1, 2
    query_b = np.array([[1, 3], [1, 2]], np.float32)  # nearest: 1, 0 and 1, 0
    assert neighbour_overlap(query_a, gallery, query_b, gallery, 1) == 0.5
    assert neighbour_overlap(query_a, gallery, query_b, gallery, 2) == 0.75


def test_what_can_not_be_compared():
    x, y = normal(0, 6, 3), normal(1, 6, 4)
    bad = x.copy()
    bad[2, 1] = np.nan
    for new, old in ((x, y), (x[:4], x), (x[:0], x[:0])):
        with pytest.raises(BctError, match="of one width"):
            procrustes_residual(new, old)
    for call in (
        lambda: procrustes_residual(bad, x),
        lambda: neighbour_overlap(x, bad, x, x, 1),
        lambda: neighbour_overlap(x, x, bad, x, 1),
    ):
        with pytest.raises(BctError, match="NaN or inf"):
            call()
    for systems in ((x, y, x, x), (x, x, x[:4], x), (x, x, x, x[:4]), (x[:0], x, x[:0], x)):
        with pytest.raises(BctError, match="same queries"):
            neighbour_overlap(*systems, 1)
    with pytest.raises(BctError, match="same queries"):
        neighbour_overlap(x[:4], x, x[:4], x, 1, exclude_self=True)
    for k, exclude in ((0, False), (7, False), (6, True)):
        with pytest.raises(BctError, match=f"k is {k}"):
            neighbour_overlap(x, x, x, x, k, exclude_self=exclude)
