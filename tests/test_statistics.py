"""Class means and the credible mask: golden values, a plain re-derivation, streaming."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct import statistics
from bct.errors import BctError
from bct.statistics import class_means, credible_mask


def plain_means(features, labels):
    means = np.stack(
        [features[labels == c].astype(np.float64).mean(0) for c in range(labels.max() + 1)]
    )
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def plain_mask(features, labels, T):
    x = features.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.linalg.norm(x, axis=0, keepdims=True)
    mask = np.zeros(len(x), bool)
    for c in range(labels.max() + 1):
        rows = np.flatnonzero(labels == c)
        distance = np.linalg.norm(x[rows] - x[rows].mean(0), axis=1)
        mask[rows[np.argsort(distance, kind="stable")[: int(np.ceil(T * len(rows)))]]] = True
    return mask


def random_case(seed, classes=12, images=150, dim=8):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    return rng.standard_normal((images, dim)).astype(np.float32) * 5 + 1, rng.permutation(labels)


def test_golden(shared):
    data = np.load(shared / "golden/artefacts/artefacts.npz")
    features, labels = data["features"], data["labels"]
    np.testing.assert_allclose(class_means(features, labels), data["class_means"], atol=1e-6)
    for percent in (90, 70, 50):
        np.testing.assert_array_equal(
            credible_mask(features, labels, percent / 100), data[f"credible_T{percent}"]
        )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), T=st.sampled_from([0.9, 0.7, 0.5, 0.1, 1.0]))
def test_against_a_plain_loop_in_float64(seed, T):
    features, labels = random_case(seed)
    np.testing.assert_allclose(
        class_means(features, labels), plain_means(features, labels), atol=1e-5
    )
    mask = credible_mask(features, labels, T)
    assert (mask != plain_mask(features, labels, T)).sum() <= 2  # float32 near-ties may swap
    sizes = np.bincount(labels)
    np.testing.assert_array_equal(np.bincount(labels[mask], minlength=12), np.ceil(T * sizes))


def test_blocks_and_files_give_the_same(tmp_path, monkeypatch):
    features, labels = random_case(1)
    want = class_means(features, labels), credible_mask(features, labels, 0.7)
    np.save(tmp_path / "f.npy", features)
    monkeypatch.setattr(statistics.row_blocks, "__defaults__", (7,))
    for source in (features, np.load(tmp_path / "f.npy", mmap_mode="r")):
        np.testing.assert_allclose(class_means(source, labels), want[0], atol=1e-6)
        np.testing.assert_array_equal(credible_mask(source, labels, 0.7), want[1])


def test_equal_distances_keep_the_first():
    features = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    assert credible_mask(features, np.zeros(4, int), 0.5).tolist() == [True, True, False, False]


def test_small_classes_keep_all_at_090():
    """ceil(0.9 n): up to 9 images all stay, 10 -> 9, 11 -> 10, 12 -> 11."""
    labels = np.repeat(np.arange(4), [9, 10, 11, 12])
    features = np.random.default_rng(0).standard_normal((42, 4)).astype(np.float32)
    assert np.bincount(labels[credible_mask(features, labels, 0.9)]).tolist() == [9, 9, 10, 11]


def test_a_class_without_images():
    with pytest.raises(BctError, match="class 1 has no image"):
        class_means(np.ones((2, 3), np.float32), np.array([0, 2]))
