"""The best items of a gallery, expansion by them, and whitening, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.metrics import top_k as t
from bct.metrics.expansion import expanded
from bct.metrics.positions import LATER, positions
from bct.metrics.relevance import ByItem, Rows
from bct.metrics.top_k import first_positions, top_k
from bct.metrics.whitening import fit_whitening, whitened


def unit(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain_top(query, gallery, k):
    scores = unit(query) @ unit(gallery).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), tied=st.booleans())
def test_top_k_against_a_sort(seed, tied):
    """Blocks of any size, in any order of threads; of equal scores the smaller row."""
    rng = np.random.default_rng(seed)
    (q, g, k), dim = rng.integers(1, [10, 200, 220]), 16
    draw = rng.choice if tied else None
    make = (lambda n: draw([-1.0, 1.0], (n, dim))) if tied else (
        lambda n: rng.standard_normal((n, dim))
    )  # fmt: skip
    query, gallery = make(q).astype(np.float32), make(g).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "ROWS", int(rng.integers(1, 60)))
        rows, scores = top_k(query, gallery, int(k))
    order, wanted = plain_top(query, gallery, min(k, g))
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6)
    assert rows.dtype == np.int64 and scores.dtype == np.float32


def test_top_k_of_a_file_keeps_little(tmp_path, monkeypatch):
    """Of a block only what may be among the best is kept, and a block is all that is read."""
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((20_000, 16)).astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    stored = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    kept, best = [], t.best

    def watched(owner, *rest):
        kept.append(len(owner))
        return best(owner, *rest)

    monkeypatch.setattr(t, "best", watched)
    monkeypatch.setattr(t, "ROWS", 500)
    query = rng.standard_normal((30, 16))
    rows, _ = top_k(query, stored, 10)
    np.testing.assert_array_equal(rows, plain_top(query, gallery, 10)[0])
    assert max(kept) < 30 * 10 * 4  # of 600,000 scores


def test_first_positions_are_those_of_the_whole_ranking():
    """But for what comes later; ignored items are taken out before anything is cut."""
    rng = np.random.default_rng(1)
    query, gallery = rng.standard_normal((8, 6)), rng.standard_normal((400, 6))
    chosen = [rng.permutation(400)[:150] for _ in range(8)]
    relevance = ByItem(
        Rows.of_lists([rows[:60] for rows in chosen]), Rows.of_lists([rows[60:] for rows in chosen])
    )
    whole = positions(query, gallery, {"": relevance})[""]
    found = first_positions(query, gallery, {"": relevance}, first=50)[""]
    np.testing.assert_array_equal(found.offsets, whole.offsets)
    np.testing.assert_array_equal(found.places, np.where(whole.places <= 50, whole.places, LATER))


def test_top_k_refuses():
    x = np.ones((3, 2))
    with pytest.raises(BctError, match="the best 0 items"):
        top_k(x, x, 0)
    x[1, 1] = np.inf
    with pytest.raises(BctError, match="row 1 is not finite"):
        top_k(np.ones((3, 2)), x, 2)
    with pytest.raises(BctError, match="row 1 is not finite"):
        top_k(x, np.ones((3, 2)), 2)


# ---- expansion


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_expansion_by_its_formula(alpha):
    rng = np.random.default_rng(2)
    query, gallery = rng.standard_normal((300, 10)), rng.standard_normal((40, 10)) * 7
    found = expanded(query, gallery, n=25, alpha=alpha)
    rows, scores = plain_top(query, gallery, 25)
    for i, (items, of_items) in enumerate(zip(rows, scores, strict=True)):
        whole = unit(query)[i]
        for item, score in zip(items, of_items, strict=True):
            if score > 0:
                whole = whole + score**alpha * unit(gallery)[item]
        np.testing.assert_allclose(found[i], whole / np.linalg.norm(whole), atol=1e-6)
    assert found.dtype == np.float32


def test_expansion_refuses():
    for how in ({"n": 0}, {"alpha": -1.0}, {"alpha": np.nan}):
        with pytest.raises(BctError, match="expanded by"):
            expanded(np.ones((2, 3)), np.ones((2, 3)), **how)


# ---- whitening


def test_whitened_rows_have_no_covariance():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((5000, 6)) @ rng.standard_normal((6, 6)) + 3
    whitening = fit_whitening(x)
    made = (unit(x) - whitening.mean) @ whitening.projection
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(made.T @ made / len(made), np.eye(6), atol=1e-6)
    np.testing.assert_allclose(whitened(x, whitening), unit(made), atol=1e-6)
    # the first dimensions are those in which rows vary most
    some = fit_whitening(x, 2)
    np.testing.assert_allclose(some.projection, whitening.projection[:, :2])
    _, sizes, axes = np.linalg.svd(unit(x) - unit(x).mean(axis=0), full_matrices=False)
    wanted = axes[:2].T / (sizes[:2] / np.sqrt(len(x)))
    np.testing.assert_allclose(np.abs(some.projection), np.abs(wanted), rtol=1e-6)


def test_whitening_of_files_and_of_zeros(tmp_path):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((30, 4)).astype(np.float32)
    x[11] = 0
    np.save(tmp_path / "x.npy", x)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole, part = fit_whitening(stored), fit_whitening(np.delete(x, 11, axis=0))
    np.testing.assert_allclose(whole.projection, part.projection)
    found = whitened(stored, whole)
    assert not found[11].any() and np.linalg.norm(found[12]) == pytest.approx(1)


def test_whitening_refuses():
    rng = np.random.default_rng(6)
    flat = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 8))
    assert fit_whitening(flat).projection.shape == (8, 3)
    with pytest.raises(BctError, match="50 rows vary in 3 dimensions, 4 are to be kept"):
        fit_whitening(flat, 4)
    with pytest.raises(BctError, match="4 rows vary in 3 dimensions"):
        fit_whitening(rng.standard_normal((4, 8)), 8)
    with pytest.raises(BctError, match="1 rows vary in 0"):
        fit_whitening(np.ones((1, 3)))
    with pytest.raises(BctError, match="for 8 dimensions"):
        whitened(np.ones((2, 3)), fit_whitening(flat))
