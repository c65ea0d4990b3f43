"""Class means and radii, credible masks: golden values, plain re-derivations, streaming."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.errors import BctError
from bct.stored import class_statistics as statistics
from bct.stored.class_statistics import class_means, class_statistics, credible_mask, entropy_mask


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


def plain_statistics(features, labels):
    """Per class: centre, largest and smallest radius, largest angle, images, radii kept."""
    x = features.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = []
    for c in range(labels.max() + 1):
        rows = x[labels == c]
        centre, n = rows.mean(0), len(rows)
        cosines = rows @ centre / np.linalg.norm(centre)
        kept = []
        for r in np.linalg.norm(rows - centre, axis=1), np.arccos(np.clip(cosines, -1, 1)):
            r = np.sort(r)
            if n >= 4:
                q1, q3 = r[n // 4], r[3 * n // 4]
                r = r[(r >= q1 - 1.5 * (q3 - q1)) & (r <= q3 + 1.5 * (q3 - q1))]
            kept.append(r)
        out.append((centre, kept[0][-1], kept[0][0], kept[1][-1], n, len(kept[0])))
    return [np.array(column) for column in zip(*out, strict=True)]


def plain_entropy(features, labels):
    """Of each image's distribution over the classes."""
    x = features.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([x[labels == c].mean(0) for c in range(labels.max() + 1)])
    squares = ((x[:, None] - means) ** 2).sum(2)
    per_dimension = squares[np.arange(len(x)), labels].mean() / x.shape[1]
    p = np.exp(-squares / (2 * per_dimension))
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1)


def random_case(seed, classes=12, images=150, dim=8):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    return rng.standard_normal((images, dim)).astype(np.float32) * 5 + 1, rng.permutation(labels)


def test_golden(shared):
    data = np.load(shared / "golden/artefacts/artefacts.npz")
    features, labels = data["features"], data["labels"]
    np.testing.assert_allclose(class_means(features, labels), data["class_means"], atol=1e-6)
    masks = [name for name in data if name.startswith("credible_T")]
    assert masks
    for name in masks:
        percent = int(name.removeprefix("credible_T"))
        np.testing.assert_array_equal(credible_mask(features, labels, percent / 100), data[name])
    table = class_statistics(features, labels)
    np.testing.assert_allclose(table["centre"], data["advbct_centers"], atol=1e-6)
    np.testing.assert_allclose(table["radius"], data["advbct_radius_max"], atol=1e-6)
    np.testing.assert_array_equal(table["kept"], data["advbct_radius_count"])


@settings(max_examples=25)
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


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_class_statistics_against_a_plain_loop_in_float64(seed, sizes):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = (rng.standard_normal((len(labels), 5)) ** 3).astype(np.float32)  # has outliers
    table = class_statistics(features, labels)
    names = ("centre", "radius", "smallest_radius", "angle", "count", "kept")
    for name, want in zip(names, plain_statistics(features, labels), strict=True):
        # float32 arccos near 1 is off by up to 5e-4: classes of one image
        np.testing.assert_allclose(table[name], want, atol=1e-3 if name == "angle" else 1e-5)
    assert table["count"].tolist() == sizes


def test_golden_of_advbct_and_lce(shared):
    """AdvBCT's radii and angles after its rule, LCE's smallest cosines; two classes are absent."""
    with np.load(shared / "golden/landmarks_reid/losses/inputs_and_grads.npz") as file:
        data = {name: file[name] for name in file.files if name.startswith(("art_", "lce_"))}
    features, labels = data["art_features"], data["art_labels"]
    there = ~np.isnan(data["art_rmax"])
    known = np.flatnonzero(there)
    table = class_statistics(features, np.searchsorted(known, labels))
    assert sorted(table["count"]) == [1, 2, 3, 9, 10, 11, 12, 22]
    np.testing.assert_allclose(table["centre"], data["art_center"][known], atol=1e-6)
    columns = {"smallest_radius": "art_rmin", "radius": "art_rmax", "angle": "art_theta_max"}
    for column, name in columns.items():
        np.testing.assert_allclose(table[column], data[name][known], atol=2e-6)
    np.testing.assert_array_equal(table["kept"], data["art_kept_radius"][known])
    np.testing.assert_array_equal(table["kept_angles"], data["art_kept_theta"][known])
    np.testing.assert_allclose(table["cosine"], data["lce_cos"][known], atol=1e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_angles_against_a_plain_loop_in_float64(seed, sizes):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = (rng.standard_normal((len(labels), 5)) ** 3).astype(np.float32)  # has outliers
    table = class_statistics(features, labels)
    x = features.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for c, n in enumerate(sizes):
        mean = x[labels == c].mean(0)
        cosines = np.clip(x[labels == c] @ mean / np.linalg.norm(mean), -1, 1)
        angles = np.sort(np.arccos(cosines))
        q1, q3 = angles[n // 4], angles[3 * n // 4]
        reach = 1.5 * (q3 - q1) if n >= 4 else np.inf
        kept = angles[(angles >= q1 - reach) & (angles <= q3 + reach)]
        assert table["cosine"][c] == pytest.approx(cosines.min(), abs=1e-5)
        assert table["kept_angles"][c] == len(kept) or np.abs(np.diff(angles)).min() < 1e-4
        if table["kept_angles"][c] == len(kept):
            assert table["angle"][c] == pytest.approx(kept[-1], abs=1e-4 if n > 1 else 1e-3)


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_small_angles_are_not_lost(noise):
    """In float32 the cosine of an angle below 3e-4 is 1."""
    rng = np.random.default_rng(0)
    features = 5 + noise * rng.standard_normal((12, 16)).astype(np.float32)
    (row,) = class_statistics(features, np.zeros(12, int))
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean = x.mean(0) / np.linalg.norm(x.mean(0))
    angles = np.sort(2 * np.arcsin(np.linalg.norm(x - mean, axis=1) / 2))
    q1, q3 = angles[3], angles[9]
    want = angles[angles <= q3 + 1.5 * (q3 - q1)][-1]
    assert row["angle"] == pytest.approx(want, rel=2e-2 if noise < 1e-3 else 2e-3)


def test_outliers_are_dropped_from_the_radii():
    """Nine images near one direction and one opposite: their radii without the outlier's."""
    features = np.diag(np.linspace(1, 2, 10)).astype(np.float32) + 5
    features[-1] *= -1
    (row,) = class_statistics(features, np.zeros(10, int))
    assert (row["count"], row["kept"]) == (10, 9)
    want = [np.linalg.norm(x / np.linalg.norm(x) - row["centre"]) for x in features]
    assert row["radius"] == pytest.approx(max(want[:9]), rel=1e-5) and want[9] > 1.5
    assert row["angle"] < 0.3


@pytest.mark.parametrize(("images", "kept"), [(3, 3), (4, 3), (5, 4)])
def test_four_images_are_enough_to_drop_one(images, kept):
    """One image in the middle of the others."""
    middle, around = np.zeros((1, 8)), np.eye(8)[1:images]
    features = np.concatenate((middle, around)).astype(np.float32)
    features[:, 0] = 2
    (row,) = class_statistics(features, np.zeros(images, int))
    assert row["kept"] == kept


@pytest.mark.parametrize("T", [0.1, 0.3, 0.5])
def test_entropy_mask_against_float64(T):
    features, labels = random_case(2)
    features += 6 * np.random.default_rng(3).standard_normal((12, 8)).astype(np.float32)[labels]
    entropy = plain_entropy(features, labels)
    mask = entropy_mask(features, labels, T)
    sure = abs(entropy - T * np.log(12)) > 1e-4
    np.testing.assert_array_equal(mask[sure], (entropy <= T * np.log(12))[sure])
    assert sure.sum() > 140


def test_images_between_classes_are_not_credible():
    """Six separate clusters; one image of class 0 halfway to class 1."""
    labels = np.repeat(np.arange(6), 20)
    noise = np.random.default_rng(0).standard_normal((120, 6)).astype(np.float32)
    features = np.eye(6, dtype=np.float32)[labels] + 0.15 * noise
    assert entropy_mask(features, labels, 0.05).all()
    features[7] = [1, 1, 0, 0, 0, 0]  # at most ln 2 = 0.39 ln 6
    assert np.flatnonzero(~entropy_mask(features, labels, 0.05)).tolist() == [7]
    assert entropy_mask(features, labels, 0.4).all()


def test_blocks_and_files_give_the_same(tmp_path, monkeypatch):
    features, labels = random_case(1)
    want = class_means(features, labels), credible_mask(features, labels, 0.7)
    T = np.median(plain_entropy(features, labels)) / np.log(12)
    table, entropy = class_statistics(features, labels), entropy_mask(features, labels, T)
    assert entropy.sum() == 75
    np.save(tmp_path / "f.npy", features)
    monkeypatch.setattr(statistics, "BLOCK", 7)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    for source in (features, np.load(tmp_path / "f.npy", mmap_mode="r")):
        np.testing.assert_allclose(class_means(source, labels), want[0], atol=1e-6)
        np.testing.assert_array_equal(credible_mask(source, labels, 0.7), want[1])
        again = class_statistics(source, labels)
        for name in table.dtype.names:
            np.testing.assert_allclose(again[name], table[name], atol=1e-6)
        np.testing.assert_array_equal(entropy_mask(source, labels, T), entropy)


def test_parts_and_changed_copies_of_a_file(tmp_path):
    """What is not a whole file is not read from one."""
    features, labels = random_case(3)
    np.save(tmp_path / "f.npy", features)
    _, dense = np.unique(labels[20:], return_inverse=True)
    part = np.load(tmp_path / "f.npy", mmap_mode="r")[20:]
    np.testing.assert_array_equal(class_means(part, dense), class_means(features[20:], dense))
    changed = np.load(tmp_path / "f.npy", mmap_mode="c")
    changed[:] *= -1
    np.testing.assert_array_equal(class_means(changed, labels), class_means(-features, labels))


def test_half_precision_files_and_one_thread_give_the_same(tmp_path, monkeypatch):
    features, labels = random_case(4)
    half = features.astype(np.float16)
    np.save(tmp_path / "f.npy", half)
    source = np.load(tmp_path / "f.npy", mmap_mode="r")
    monkeypatch.setattr(statistics, "CHUNK", 7)
    for threads in (1, 4):
        monkeypatch.setattr(statistics.torch, "get_num_threads", lambda n=threads: n)
        means, mask = class_means(source, labels), credible_mask(source, labels, 0.7)
        if threads == 1:
            first = means, mask
    np.testing.assert_array_equal(means, first[0])  # the order of the sums is that of the rows
    np.testing.assert_array_equal(mask, first[1])
    np.testing.assert_allclose(means, plain_means(half, labels), atol=1e-5)


def test_embeddings_that_are_not_numbers():
    features, labels = random_case(5)
    features[17, 3] = np.nan
    with pytest.raises(BctError, match="NaN or inf"):
        credible_mask(features, labels, 0.9)


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


@pytest.mark.parametrize("noise", [0.2, 0.02, 0.002])
def test_tight_classes_in_float64(noise):
    """Images nearly equal to their class's mean: their distances are small differences."""
    rng = np.random.default_rng(6)
    labels = rng.permutation(np.repeat(np.arange(20), 15))
    centres = rng.standard_normal((20, 16))[labels]
    features = 9 * (centres + noise * rng.standard_normal((300, 16))).astype(np.float32)
    table = class_statistics(features, labels)
    _, largest, smallest, angle, _, kept = plain_statistics(features, labels)
    np.testing.assert_allclose(table["radius"], largest, rtol=2e-4)
    np.testing.assert_allclose(table["smallest_radius"], smallest, rtol=2e-4)
    np.testing.assert_allclose(table["angle"], angle, atol=1e-3)
    np.testing.assert_array_equal(table["kept"], kept)
    differing = credible_mask(features, labels, 0.6) != plain_mask(features, labels, 0.6)
    assert differing.sum() <= 2  # float32 near-ties may swap


def test_columns_of_zeros():
    features, labels = random_case(7)
    wide = np.insert(features, 3, 0, axis=1)
    np.testing.assert_array_equal(
        credible_mask(wide, labels, 0.6), credible_mask(features, labels, 0.6)
    )


def test_rows_of_zeros_take_no_part():
    """Every figure is that of the other rows; a mask never holds them."""
    features, labels = random_case(7)
    gone = np.random.default_rng(0).permutation(len(labels))[:20]
    features[gone] = 0
    rest = np.setdiff1d(np.arange(len(labels)), gone)
    for make in (
        class_means,
        class_statistics,
        lambda *of, zeros=None: credible_mask(*of, 0.6, zeros),
        lambda *of, zeros=None: entropy_mask(*of, 0.7, zeros),
    ):
        zeros = []
        found, want = make(features, labels, zeros=zeros), make(features[rest], labels[rest])
        assert zeros == sorted(gone)
        if found.dtype == bool:
            assert not found[gone].any() and 0 < found.sum() < len(rest)
            found = found[rest]
        for name in found.dtype.names or [...]:
            np.testing.assert_allclose(found[name], want[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("scale", [1e-30, 1e-17, 3e20, 1e-300, 1e300])
def test_figures_do_not_depend_on_the_scale(kind, scale, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 7)
    if kind == "f4" and not 1e-38 < scale < 1e38:
        scale = 1.0
    features, labels = random_case(11)
    features[5] = 0
    scaled = (features.astype("f8") * scale).astype(kind)
    half = np.where(labels[:, None] % 2, scaled.astype("f8"), features)  # not all are alike
    for make in (
        class_means,
        class_statistics,
        lambda *of: credible_mask(*of, 0.6),
        lambda *of: entropy_mask(*of, 0.7),
    ):
        want = make(features, labels)
        for found in (make(scaled, labels), make(half, labels)):
            for name in want.dtype.names or [...]:
                np.testing.assert_allclose(found[name], want[name], atol=2e-4)


def test_a_class_of_zeros_alone_is_refused(tmp_path):
    features, labels = random_case(7)
    features[labels == 4] = 0
    np.save(tmp_path / "old.npy", features)
    mapped = np.load(tmp_path / "old.npy", mmap_mode="r")
    for make in (class_means, class_statistics, lambda *of: credible_mask(*of, 0.6)):
        with pytest.raises(BctError, match=r"old.npy: all rows of class 4 are zeros"):
            make(mapped, labels)
        with pytest.raises(BctError, match="all 150 rows are zeros"):
            make(features * 0, labels)


@pytest.mark.parametrize("scale", [1, 1e-3])
@pytest.mark.parametrize("dim", [2, 128, 512])
def test_classes_of_two_are_tied(dim, scale):
    """Both images are as far from their mean: the first one stays, not what rounding likes."""
    rng = np.random.default_rng(dim)
    labels = rng.permutation(np.arange(2000) % 1000)
    centre = rng.standard_normal((1000, dim))[labels]
    features = (centre + scale * rng.standard_normal((2000, dim))).astype(np.float32)
    want = np.zeros(2000, bool)
    want[np.unique(labels, return_index=True)[1]] = True
    np.testing.assert_array_equal(credible_mask(features, labels, 0.5), want)


@pytest.mark.parametrize("kind", ["duplicates", "mirrored"])
def test_other_ties_keep_the_first(kind):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(50), 6)
    part = rng.standard_normal((50, 3, 32)).astype(np.float32)
    apart = part if kind == "duplicates" else 2 * part.mean(1, keepdims=True) - part
    if kind == "mirrored":  # of unit length, or they would not stay mirrored
        axis = np.zeros(32, np.float32)
        axis[0] = 1
        part[..., 0] = 0
        part /= np.linalg.norm(part, axis=2, keepdims=True)
        part, apart = part + axis, axis - part
    features = np.stack([part, apart], axis=2).reshape(300, 32)  # i and i + 1 are tied
    mask = credible_mask(features, labels, 0.5).reshape(50, 3, 2)
    assert not (mask[..., 1] & ~mask[..., 0]).any() and mask.sum() == 150


def test_statistics_of_embeddings_that_are_not_numbers():
    features, labels = random_case(8)
    features[17, 3] = np.nan
    with pytest.raises(BctError, match="NaN or inf"):
        class_statistics(features, labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_file_that_was_cut_off(tmp_path, dtype):
    features, labels = random_case(9)
    np.save(tmp_path / "f.npy", features.astype(dtype))
    source = np.load(tmp_path / "f.npy", mmap_mode="r")
    with open(tmp_path / "f.npy", "r+b") as file:
        file.truncate(source.offset + source.nbytes // 2)
    with pytest.raises(BctError, match="shorter than it was"):
        class_means(source, labels)


def test_threads_do_not_share_what_they_work_in(tmp_path, monkeypatch):
    """More threads than cores, on rows that do not fill the last chunk."""
    rng = np.random.default_rng(10)
    labels = rng.permutation(np.repeat(np.arange(50), 41))
    np.save(tmp_path / "f.npy", rng.standard_normal((len(labels), 64)).astype(np.float32))
    source = np.load(tmp_path / "f.npy", mmap_mode="r")
    monkeypatch.setattr(statistics, "CHUNK", 60)
    found = []
    for threads in (1, 5):
        monkeypatch.setattr(statistics.torch, "get_num_threads", lambda n=threads: n)
        found.append((class_statistics(source, labels), credible_mask(source, labels, 0.7)))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    np.testing.assert_array_equal(found[0][1], found[1][1])
