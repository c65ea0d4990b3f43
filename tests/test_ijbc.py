"""The IJB protocol: golden scores and figures, alignment, meta files, the command line."""

import json

import numpy as np
import pytest
from skimage.transform import SimilarityTransform

from bct.errors import BctError
from tools.ijbc import scoring
from tools.ijbc.align import TEMPLATE, align, similarity_to_template
from tools.ijbc.protocol import Gallery, Protocol, read_galleries, read_protocol
from tools.ijbc.scoring import (
    FPIRS,
    MODES,
    PUBLISHED,
    Templates,
    open_set,
    pair_scores,
    template_features,
    verification,
)

# ---- golden: the published evaluator on stored embeddings of real faces


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/ijbc"
    protocol = read_protocol(shared / "data/lfw_ijbc")
    stored = np.load(folder / "embeddings.npz")
    new, old = (
        template_features(stored[m] + stored[f"{m}_flip"], protocol) for m in ("new", "old")
    )
    expected = json.loads((folder / "expected.json").read_text())
    scores = {mode: np.load(folder / f"scores_{mode}.npy") for mode in ("self", "cross")}
    return protocol, {"self": (new, new), "cross": (old, new)}, expected, scores


@pytest.mark.parametrize("mode", ["self", "cross"])
def test_golden_scores_and_counts(golden, mode):
    protocol, models, expected, scores = golden
    ours = pair_scores(*models[mode], protocol.first, protocol.second)
    np.testing.assert_allclose(ours, scores[mode], atol=1e-6)
    genuine = protocol.genuine.sum()
    for rule in ("strict", "nearest"):
        result = verification(ours, protocol.genuine, rule)
        want = {float(far): tar for far, tar in expected[mode][f"tar_at_far_{rule}"].items()}
        for far, tar in result["tar"].items():
            assert round(tar * genuine) == round(want[float(far)] * genuine)
        assert result["auc"] == pytest.approx(expected[mode]["auc"], abs=1e-6)


@pytest.mark.parametrize("mode", ["self", "cross"])
def test_golden_identification(golden, mode):
    protocol, models, expected, _ = golden
    result = open_set(*models[mode], *read_galleries(protocol), rule="nearest")
    np.testing.assert_allclose(FPIRS, expected[mode]["fars"])
    np.testing.assert_allclose(result["mean"]["tpir"], expected[mode]["mean_tpir"], atol=1e-12)
    lines = [line for line in expected[mode]["printed"] if line.startswith(("top1", "[Mean]"))]
    for line, name in zip(lines, ("gallery_G1", "gallery_G2", "mean", "mixed"), strict=True):
        for part in line.removeprefix("[Mean] ").split(", "):
            title, value = part.split(": ")
            assert result[name][title] == pytest.approx(float(value), abs=1e-6)


def test_strict_identification_keeps_its_promise(golden):
    protocol, models, _, _ = golden
    (gallery, *_), probes = read_galleries(protocol)
    old, new = models["cross"]
    result = open_set(old, new, [gallery], probes)["gallery_G1"]
    similarity = (
        new.features[new.rows(probes.templates)] @ old.features[old.rows(gallery.templates)].T
    )
    nonmated = ~np.isin(probes.subjects, gallery.subjects)
    for fpir, threshold in zip(FPIRS, result["threshold"], strict=True):
        above = similarity[nonmated].max(1) > threshold + 1e-6  # another product, other rounding
        assert above.mean() <= fpir


# ---- templates and scores against plain loops


def toy_protocol(images=40, templates=9, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.choice(1000, templates, replace=False)
    of_image = np.concatenate([ids, rng.choice(ids, images - templates)])
    first, second = rng.choice(ids, (2, 30))
    return Protocol(
        None, "IJBC", [str(i) for i in range(images)], np.zeros((images, 5, 2)),
        rng.uniform(0.5, 1, images).astype(np.float32), of_image, rng.integers(0, 5, images),
        first, second, rng.random(30) < 0.3,
    )  # fmt: skip


def test_templates_are_sums_of_media_means():
    protocol = toy_protocol()
    features = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    result = template_features(features, protocol)
    assert result.ids.tolist() == sorted(set(protocol.templates.tolist()))
    for identifier, row in zip(result.ids, result.features, strict=True):
        mine = protocol.templates == identifier
        total = np.zeros(6)
        for medium in np.unique(protocol.medias[mine]):
            chosen = mine & (protocol.medias == medium)
            total += (features[chosen].astype(np.float64) * protocol.detector[chosen, None]).mean(0)
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_eight_modes_by_loops(mode):
    protocol = toy_protocol()
    features = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    result = template_features(features, protocol, mode)
    for identifier, row in zip(result.ids, result.features, strict=True):
        total = np.zeros(6)
        for medium in set(protocol.medias.tolist()):
            images = [
                (features[i] / (np.linalg.norm(features[i]) if mode.normalise else 1))
                * (protocol.detector[i] if mode.detector else 1)
                for i in range(40)
                if protocol.templates[i] == identifier and protocol.medias[i] == medium
            ]
            total += sum(images) / max(len(images), 1)
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-6)


def test_modes_are_called_as_the_published_script_calls_them():
    assert str(PUBLISHED) == "N0D1F1" and PUBLISHED in MODES
    assert [str(mode) for mode in MODES[:3]] == ["N0D0F0", "N0D0F1", "N0D1F0"]
    assert len({str(mode) for mode in MODES}) == 8


def test_a_probe_of_no_gallery_counts_as_unmated(golden):
    """Its subject made unknown, a probe that was found in G1 counts in neither mean nor mixed."""
    protocol, models, _, _ = golden
    (g1, g2), probes = read_galleries(protocol)
    before = open_set(*models["self"], [g1, g2], probes)
    known = np.isin(probes.subjects, g1.subjects)
    unknown = Gallery("probe", probes.templates, np.where(known, -1, probes.subjects))
    unknown.subjects[np.flatnonzero(known)[0]] = probes.subjects[known][0]
    after = open_set(*models["self"], [g1, g2], unknown)
    assert after["gallery_G1"]["mated"] == 1
    in_g2 = before["gallery_G2"]["mated"]
    assert after["gallery_G2"]["mated"] == in_g2
    hits = after["gallery_G1"]["top1"] + in_g2 * after["gallery_G2"]["top1"]
    assert after["mean"]["top1"] == pytest.approx(hits / (1 + in_g2))


def test_dense_and_sparse_scoring_agree():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 8)).astype(np.float32)
    model = Templates(np.arange(2000) * 3, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    a, b = rng.choice(model.ids, (2, 50))  # 50 pairs of up to 50 x 50 templates: sparse
    want = [model.features[x // 3] @ model.features[y // 3] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pair_scores(model, model, a, b), want, atol=1e-6)
    some = model.ids[:7]  # all pairs of 7: dense
    a, b = np.repeat(some, 7), np.tile(some, 7)
    want = [model.features[x // 3] @ model.features[y // 3] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pair_scores(model, model, a, b), want, atol=1e-6)


@pytest.mark.parametrize("step", [1, 1 << 22])  # the last: ids too large for a table
def test_pairs_in_blocks(step, monkeypatch):
    """All pairs of 40 templates, out of order, a few at a time."""
    monkeypatch.setattr(scoring, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    model = Templates(np.arange(50) * step, rng.standard_normal((50, 8)).astype(np.float32))
    at = rng.permutation(1600)
    a, b = 5 + at // 40, at % 40
    want = (model.features[5:45].astype(float) @ model.features[:40].T.astype(float)).ravel()[at]
    for few in (slice(None), slice(90)):  # dense, sparse
        ours = pair_scores(model, model, model.ids[a[few]], model.ids[b[few]])
        np.testing.assert_allclose(ours, want[few], atol=1e-5)


def test_a_pair_of_a_template_without_images():
    model = Templates(np.array([1, 2, 5]), np.ones((3, 2), np.float32))
    with pytest.raises(BctError, match="template 3 has no embedding"):
        pair_scores(model, model, np.array([1, 3]), np.array([2, 5]))


@pytest.mark.parametrize("step", [1, 7, 1 << 22])  # the last: ids too large for a table
def test_rows_of_template_ids(step):
    model = Templates(3 + np.arange(50) * step, np.zeros((50, 2), np.float32))
    rows = np.random.default_rng(0).integers(0, 50, 200)
    assert model.rows(model.ids[rows]).tolist() == rows.tolist()


def test_models_of_different_size_are_not_compared():
    a, b = (Templates(np.arange(2), np.ones((2, d), np.float32)) for d in (4, 5))
    with pytest.raises(BctError, match="4 and 5 dimensions"):
        pair_scores(a, b, np.array([0]), np.array([1]))


def test_embeddings_must_match_the_images():
    with pytest.raises(BctError, match="39 embeddings for 40 images"):
        template_features(np.ones((39, 4), np.float32), toy_protocol())


# ---- alignment


def test_similarity_is_umeyamas():
    rng = np.random.default_rng(0)
    landmarks = TEMPLATE * 1.3 + 20 + rng.normal(0, 3, (50, 5, 2))
    ours = similarity_to_template(landmarks)
    for points, matrix in zip(landmarks, ours, strict=True):
        estimate = getattr(
            SimilarityTransform, "from_estimate", None
        )  # scikit-image 0.26 and later
        if estimate is None:
            theirs = SimilarityTransform()
            theirs.estimate(points, TEMPLATE)
        else:
            theirs = estimate(points, TEMPLATE)
        np.testing.assert_allclose(matrix, theirs.params, atol=1e-9)


def test_align_samples_the_source():
    """A picture that is its own coordinates comes out as the inverse map, black outside."""
    y, x = np.mgrid[:200, :200].astype(np.uint8)
    image = np.stack((x, y, np.full_like(x, 7)), -1)
    matrix = similarity_to_template((TEMPLATE * 0.9 + [12.0, 30.0])[None])[0]
    out = align(image, matrix).astype(float)
    v, u = np.mgrid[:112, :112]
    np.testing.assert_allclose(out[..., 0], 0.9 * u + 12, atol=0.51)
    np.testing.assert_allclose(out[..., 1], 0.9 * v + 30, atol=0.51)
    assert (align(image, np.array([[1, 0, 60.0], [0, 1, 0], [0, 0, 1]]))[:, :59] == 0).all()


# ---- meta files


def edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def test_reading(ijb):
    protocol = read_protocol(ijb.parent)
    assert len(protocol.names) == 36 and protocol.genuine.sum() == 12
    (g1, g2), probes = read_galleries(protocol)
    assert g1.templates.tolist() == [0, 10, 20] and g2.subjects.tolist() == [3, 4, 5]
    assert len(probes.templates) == 12
    assert read_protocol(ijb).names == protocol.names  # the folder itself will do


def test_ijbb_has_its_own_names(ijb):
    """IJB-B: another folder, prefix and names of the galleries; the same contents."""
    same = read_protocol(ijb.parent)
    galleries, _ = read_galleries(same)
    ijb.rename(ijb.parent / "IJBB")
    names = {"ijbc": "ijbb", "G1": "S1", "G2": "S2"}
    for file in (ijb.parent / "IJBB" / "meta").iterdir():
        name = file.name
        for old, new in names.items():
            name = name.replace(old, new)
        file.rename(file.with_name(name))
    protocol = read_protocol(ijb.parent, "IJBB")
    (s1, s2), _ = read_galleries(protocol)
    assert protocol.names == same.names and protocol.genuine.sum() == 12
    assert (s1.name, s2.name) == ("gallery_S1", "gallery_S2")
    assert s1.templates.tolist() == galleries[0].templates.tolist()
    with pytest.raises(BctError, match="holds no IJBC/meta"):
        read_protocol(ijb.parent)


BOXES, MEDIA, PAIRS = "name_5pts_score.txt", "face_tid_mid.txt", "template_pair_label.txt"


@pytest.mark.parametrize(
    ("file", "change", "word"),
    [
        (BOXES, lambda x: [x[0].rsplit(" ", 1)[0], *x[1:]], "line 1: 11 columns instead of 12"),
        (BOXES, lambda x: [x[0].replace("0.9", "high"), *x[1:]], "not a number"),
        (BOXES, lambda x: x[:-1], "has 36 rows"),
        (MEDIA, lambda x: [x[1], x[0], *x[2:]], "row 1 is 0.jpg"),
        (MEDIA, lambda x: [x[0] + " 7", *x[1:]], "4 columns instead of 3"),
        (PAIRS, lambda x: ["0 999 1", *x], "names template 999"),
        (PAIRS, lambda x: ["0 1", *x], "bad row"),
        (PAIRS, lambda x: [], "is empty"),
        ("1N_gallery_G1.csv", lambda x: [*x, "11,0,x"], "two templates of subject 0"),
        ("1N_gallery_G2.csv", lambda x: [*x, "11,0,x"], "subject 0 is in gallery_G1 and in"),
        ("1N_probe_mixed.csv", lambda x: [*x, "999,0,x"], "names template 999"),
    ],
)
def test_bad_meta_files(ijb, file, change, word):
    edit(ijb / "meta" / f"ijbc_{file}", change)
    with pytest.raises(BctError) as info:
        read_galleries(read_protocol(ijb.parent))
    assert word in str(info.value), str(info.value)
    assert len(str(info.value).splitlines()) == 2


def test_missing_folder_and_file(ijb, tmp_path):
    with pytest.raises(BctError, match="holds no IJBC/meta"):
        read_protocol(tmp_path)
    (ijb / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(BctError, match="gallery_G2"):
        read_galleries(read_protocol(ijb))
