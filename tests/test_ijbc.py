"""The IJB protocol: golden scores and figures, alignment, meta files, the command line."""

import json
import re
import warnings

import numpy as np
import pytest
from skimage.transform import SimilarityTransform

from bct.errors import BctError
from bct.protocols import templates as module
from bct.protocols.protocol import Side
from bct.protocols.scoring import FPIRS, open_set, verification
from bct.protocols.templates import Templates, pair_scores
from tools.ijbc.align import TEMPLATE, align, similarity_to_template
from tools.ijbc.modes import MODES, PUBLISHED
from tools.ijbc.protocol import read_protocol

# ---- golden: the published evaluator on stored embeddings of real faces


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/ijbc"
    protocol = read_protocol(shared / "data/lfw_ijbc")
    stored = np.load(folder / "embeddings.npz")
    new, old = (protocol.item_features(stored[m] + stored[f"{m}_flip"]) for m in ("new", "old"))
    expected = json.loads((folder / "expected.json").read_text())
    scores = {mode: np.load(folder / f"scores_{mode}.npy") for mode in ("self", "cross")}
    return protocol, {"self": (new, new), "cross": (old, new)}, expected, scores


@pytest.mark.parametrize("mode", ["self", "cross"])
def test_golden_scores_and_counts(golden, mode):
    protocol, models, expected, scores = golden
    ours = pair_scores(*models[mode], *protocol.pairs[:2])
    np.testing.assert_allclose(ours, scores[mode], atol=1e-6)
    genuine = protocol.pairs.genuine.sum()
    for rule in ("strict", "nearest"):
        result = verification(ours, protocol.pairs.genuine, rule)
        want = {float(far): tar for far, tar in expected[mode][f"tar_at_far_{rule}"].items()}
        for far, tar in result["tar"].items():
            assert round(tar * genuine) == round(want[float(far)] * genuine)
        assert result["auc"] == pytest.approx(expected[mode]["auc"], abs=1e-6)


@pytest.mark.parametrize("mode", ["self", "cross"])
def test_golden_identification(golden, mode):
    protocol, models, expected, _ = golden
    result = open_set(*models[mode], protocol.galleries, protocol.probes, rule="nearest")
    np.testing.assert_allclose(FPIRS, expected[mode]["fars"])
    np.testing.assert_allclose(result["mean"]["tpir"], expected[mode]["mean_tpir"], atol=1e-12)
    lines = [line for line in expected[mode]["printed"] if line.startswith(("top1", "[Mean]"))]
    for line, name in zip(lines, ("gallery_G1", "gallery_G2", "mean", "mixed"), strict=True):
        for part in line.removeprefix("[Mean] ").split(", "):
            title, value = part.split(": ")
            assert result[name][title] == pytest.approx(float(value), abs=1e-6)


def test_a_gallery_of_one_template_is_refused(golden):
    protocol, models, _, _ = golden
    g1 = protocol.galleries[0]
    single = Side("single", g1.rows[:1], g1.subjects[:1])
    with pytest.raises(BctError, match="single has a single template"):
        open_set(*models["self"], [g1, single], protocol.probes)


def test_strict_identification_keeps_its_promise(golden):
    protocol, models, _, _ = golden
    gallery, probes = protocol.galleries[0], protocol.probes
    old, new = models["cross"]
    result = open_set(old, new, [gallery], probes)["gallery_G1"]
    similarity = new[probes.rows] @ old[gallery.rows].T
    nonmated = ~np.isin(probes.subjects, gallery.subjects)
    for fpir, threshold in zip(FPIRS, result["threshold"], strict=True):
        above = similarity[nonmated].max(1) > threshold + 1e-6  # another product, other rounding
        assert above.mean() <= fpir


# ---- templates and scores against plain loops


def toy_templates(images=40, templates=9, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.choice(1000, templates, replace=False)
    of_image = np.concatenate([ids, rng.choice(ids, images - templates)])
    weight = rng.uniform(0.5, 1, images).astype(np.float32)
    return of_image, Templates(of_image, rng.integers(0, 5, images), weight)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_templates_are_sums_of_media_means_in_eight_modes(mode):
    of_image, templates = toy_templates()
    features = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    result = templates.aggregate(features, mode.normalise, mode.detector)
    assert templates.ids.tolist() == sorted(set(of_image.tolist()))
    for identifier, row in zip(templates.ids, result, strict=True):
        total = np.zeros(6)
        for medium in set(templates.medium.tolist()):
            images = [
                (features[i] / (np.linalg.norm(features[i]) if mode.normalise else 1))
                * (templates.weight[i] if mode.detector else 1)
                for i in range(40)
                if of_image[i] == identifier and templates.medium[i] == medium
            ]
            total += sum(images) / max(len(images), 1)
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-6)
    if mode == PUBLISHED:
        assert (templates.aggregate(features) == result).all()


def test_without_media_and_weights_a_template_is_a_sum():
    of_image, _ = toy_templates()
    features = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    templates = Templates(of_image)
    for identifier, row in zip(templates.ids, templates.aggregate(features), strict=True):
        total = features[of_image == identifier].sum(0)
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-6)


def test_modes_are_called_as_the_published_script_calls_them():
    assert str(PUBLISHED) == "N0D1F1" and PUBLISHED in MODES
    assert [str(mode) for mode in MODES[:3]] == ["N0D0F0", "N0D0F1", "N0D1F0"]
    assert len({str(mode) for mode in MODES}) == 8


def test_a_probe_of_no_gallery_counts_as_unmated(golden):
    """Its subject made unknown, a probe that was found in G1 counts in neither mean nor mixed."""
    protocol, models, _, _ = golden
    (g1, g2), probes = protocol.galleries, protocol.probes
    before = open_set(*models["self"], [g1, g2], probes)
    known = np.isin(probes.subjects, g1.subjects)
    unknown = Side("probe", probes.rows, np.where(known, -1, probes.subjects))
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
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    a, b = rng.integers(0, 2000, (2, 50))  # 50 pairs of up to 50 x 50 items: sparse
    want = [rows[x] @ rows[y] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pair_scores(rows, rows, a, b), want, atol=1e-6)
    a, b = np.repeat(np.arange(7), 7), np.tile(np.arange(7), 7)  # all pairs of 7: dense
    want = [rows[x] @ rows[y] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pair_scores(rows, rows, a, b), want, atol=1e-6)


def test_pairs_in_blocks(monkeypatch):
    """All pairs of 40 items, out of order, a few at a time."""
    monkeypatch.setattr(module, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 8)).astype(np.float32)
    at = rng.permutation(1600)
    a, b = 5 + at // 40, at % 40
    want = (rows[5:45].astype(float) @ rows[:40].T.astype(float)).ravel()[at]
    for few in (slice(None), slice(90)):  # dense, sparse
        np.testing.assert_allclose(pair_scores(rows, rows, a[few], b[few]), want[few], atol=1e-5)


def test_a_template_without_images():
    templates = Templates(np.array([1, 2, 5, 5]))
    for unknown in (3, 0, 9, -1):
        with pytest.raises(BctError, match=f"template {unknown} has no image"):
            templates.rows(np.array([1, unknown]))


@pytest.mark.parametrize("step", [1, 7, 1 << 22])  # the last: ids too large for a table
@pytest.mark.parametrize("start", [3, -100])
def test_rows_of_template_ids(step, start):
    templates = Templates(start + np.arange(50) * step)
    rows = np.random.default_rng(0).integers(0, 50, 200)
    assert templates.rows(templates.ids[rows]).tolist() == rows.tolist()


def test_models_of_different_size_are_not_compared():
    a, b = (np.ones((2, d), np.float32) for d in (4, 5))
    with pytest.raises(BctError, match="4 and 5 dimensions"):
        pair_scores(a, b, np.array([0]), np.array([1]))


def test_embeddings_must_match_the_images():
    with pytest.raises(BctError, match="39 embeddings for 40 images"):
        toy_templates()[1].aggregate(np.ones((39, 4), np.float32))


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
    assert len(protocol.images) == 36 and protocol.pairs.genuine.sum() == 12
    assert protocol.items == 18 and len(protocol.pairs.first) == 72
    g1, g2 = protocol.galleries
    assert [protocol.item_id(row) for row in g1.rows] == [0, 10, 20]
    assert g2.subjects.tolist() == [3, 4, 5]
    assert len(protocol.probes.rows) == 12
    assert read_protocol(ijb).images.names == protocol.images.names  # the folder itself will do


def test_subjects_are_those_of_the_search_files_and_strangers_are_their_own(ijb):
    edit(ijb / "meta" / "ijbc_1N_probe_mixed.csv", lambda x: [y for y in x if "11," not in y[:3]])
    protocol = read_protocol(ijb)
    want = [-12 if i == 11 else i // 10 for i in protocol.templates.ids.tolist()]
    assert protocol.subjects.tolist() == want
    assert read_protocol(ijb, identification=False).subjects is None


def test_strangers_are_nobody_whatever_the_numbers_are(ijb):
    """Of templates and subjects with numbers below 0, too."""
    meta = ijb / "meta"

    def shift(line):
        return ",".join([str(int(line.split(",")[0]) - 30), str(int(line.split(",")[1]) - 3), "x"])

    edit(
        meta / f"ijbc_{MEDIA}",
        lambda x: [f"{a} {int(b) - 30} {c}" for a, b, c in map(str.split, x)],
    )
    edit(
        meta / f"ijbc_{PAIRS}",
        lambda x: [f"{int(a) - 30} {int(b) - 30} {c}" for a, b, c in map(str.split, x)],
    )
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        edit(meta / f"ijbc_1N_{name}.csv", lambda x: [x[0], *map(shift, x[1:])])
    edit(meta / "ijbc_1N_probe_mixed.csv", lambda x: x[:-4])  # two templates are nobody's
    protocol = read_protocol(ijb.parent)
    assert len(np.unique(protocol.subjects)) == 6 + 2
    assert protocol.subjects[protocol.galleries[0].rows].tolist() == [-3, -2, -1]


def test_ijbb_has_its_own_names(ijb):
    """IJB-B: another folder, prefix and names of the galleries; the same contents."""
    same = read_protocol(ijb.parent)
    ijb.rename(ijb.parent / "IJBB")
    names = {"ijbc": "ijbb", "G1": "S1", "G2": "S2"}
    for file in (ijb.parent / "IJBB" / "meta").iterdir():
        name = file.name
        for old, new in names.items():
            name = name.replace(old, new)
        file.rename(file.with_name(name))
    protocol = read_protocol(ijb.parent, "IJBB")
    s1, s2 = protocol.galleries
    assert protocol.images.names == same.images.names and protocol.pairs.genuine.sum() == 12
    assert (s1.name, s2.name) == ("gallery_S1", "gallery_S2")
    assert s1.rows.tolist() == same.galleries[0].rows.tolist()
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
        read_protocol(ijb.parent)
    assert word in str(info.value), str(info.value)
    assert len(str(info.value).splitlines()) == 2


# ---- what counts for nothing


def rows_of(change, lines):
    """A function of a file's lines: those of some images (by number) changed."""
    return lambda x: [change(line) if k in lines else line for k, line in enumerate(x)]


def landmarks(text):
    return lambda line: " ".join([line.split()[0], *[text] * 10, line.split()[-1]])


def score(text):
    return lambda line: " ".join([*line.split()[:-1], text])


@pytest.mark.parametrize("text", ["0", "-1", "nan", "-inf", "57.25", "0.5"])
def test_images_without_a_face_count_for_nothing(ijb, text):
    """Whatever their embedding and score are: as if the files did not name them."""
    edit(ijb / "meta" / f"ijbc_{BOXES}", rows_of(lambda x: score("-1")(landmarks(text)(x)), {3, 8}))
    protocol = read_protocol(ijb.parent)
    assert "2 of 36 images are left out" in protocol.remarks[0]
    assert "line 4: its five landmarks are" in protocol.remarks[0]
    assert "lines 9, too" in protocol.remarks[0] and len(protocol.remarks) == 1
    rng = np.random.default_rng(0)
    features = rng.standard_normal((36, 8)).astype(np.float32)
    before = [protocol.templates.aggregate(features, *mode[:2]) for mode in MODES]
    features[[3, 8]] = 1e6 * rng.standard_normal((2, 8))
    for mode, items in zip(MODES, before, strict=True):
        np.testing.assert_array_equal(protocol.templates.aggregate(features, *mode[:2]), items)
    unit = features[2] / np.linalg.norm(features[2])
    np.testing.assert_allclose(before[0][1], unit, atol=1e-6)  # template 1 was images 2 and 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = np.ones((112, 112, 3), np.uint8)
        (ijb / "loose_crop/3.jpg").unlink()  # nobody looks at it
        protocol.images.load(3, out)
    assert not out.any()
    assert protocol.first_image(protocol.item_id(4)) == 9  # not 8


def test_a_template_without_any_face_is_refused_where_it_is_named(ijb):
    file = ijb / "meta" / f"ijbc_{BOXES}"
    edit(file, rows_of(landmarks("0"), {2, 3}))
    with pytest.raises(BctError, match=r"label.txt names template 1, which has no image with a"):
        read_protocol(ijb.parent)
    pairs = ijb / "meta" / f"ijbc_{PAIRS}"
    edit(pairs, lambda lines: [x for x in lines if x.split()[1] != "1"])
    with pytest.raises(BctError, match=r"probe_mixed.csv names template 1, which has no image"):
        read_protocol(ijb.parent)
    assert len(read_protocol(ijb.parent, identification=False).templates.ids) == 17


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (rows_of(lambda x: re.sub(r" \S+", " nan", x, count=1), {4}), "line 5: only some of its"),
        (rows_of(score("-0.5"), {4}), "line 5: its detection score is -0.5"),
        (rows_of(score("nan"), {4}), "line 5: its detection score is nan"),
        (rows_of(score("0"), {4, 5}), "names template 2, which has no image with a face and a"),
        (rows_of(score("0"), range(36)), "all scores are 0"),
        (rows_of(landmarks("-1"), range(36)), "no image has a face"),
        (rows_of(lambda x: x.replace("0.9", "1_0"), {4}), "is not a number"),
        (rows_of(lambda x: x.replace("0.9", "nanny"), {4}), "is not a number"),
    ],
)
def test_bad_faces(ijb, change, word):
    edit(ijb / "meta" / f"ijbc_{BOXES}", change)
    with pytest.raises(BctError, match=word) as info:
        read_protocol(ijb.parent)
    assert len(str(info.value).splitlines()) == 2


def test_a_score_of_zero_beside_others_weighs_nothing_and_is_no_error(ijb):
    edit(ijb / "meta" / f"ijbc_{BOXES}", rows_of(score("0"), {4}))
    protocol = read_protocol(ijb.parent)
    assert not protocol.remarks and (protocol.templates.row >= 0).all()


def test_landmarks_outside_of_the_picture_are_refused(ijb):
    """Those of another size of the pictures: the face would be black."""

    def move(line):
        name, *points, last = line.split()
        return " ".join([name, *(str(float(p) + 4000) for p in points), last])

    edit(ijb / "meta" / f"ijbc_{BOXES}", rows_of(move, {6}))
    images = read_protocol(ijb.parent).images
    with pytest.raises(
        BctError, match=r"line 7: its landmarks lie outside of 6.jpg, which has 140"
    ):
        images.load(6, np.zeros((112, 112, 3), np.uint8))


def test_pairs_of_one_template_or_of_one_image_are_left_out(ijb):
    """Template 11 gets an image of template 10; of noise such pairs would have TAR 1."""
    before = read_protocol(ijb.parent)
    meta = ijb / "meta"
    edit(meta / f"ijbc_{PAIRS}", lambda x: ["0 0 1", *x, "31 31 1", "20 20 0"])
    protocol = read_protocol(ijb.parent)
    assert "3 of 75 pairs are left out" in protocol.remarks[0]
    assert "line 1; lines 74, 75, too" in protocol.remarks[0]
    for ours, theirs in zip(protocol.pairs, before.pairs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    boxes, media = ((meta / f"ijbc_{name}").read_text().splitlines() for name in (BOXES, MEDIA))
    at = next(k for k, line in enumerate(media) if line.split()[1] == "10")
    edit(meta / f"ijbc_{BOXES}", lambda x: [*x, boxes[at]])
    edit(meta / f"ijbc_{MEDIA}", lambda x: [*x, f"{media[at].split()[0]} 11 99"])
    protocol = read_protocol(ijb.parent)
    assert "4 of 75 pairs are left out" in protocol.remarks[0]
    ids = protocol.templates.ids
    pairs = set(zip(ids[protocol.pairs.first], ids[protocol.pairs.second], strict=True))
    assert (10, 11) not in pairs and (10, 12) in pairs and (0, 11) in pairs
    assert "1 of 12 probes are left out" in protocol.remarks[1]
    assert 11 not in ids[protocol.probes.rows]
    # another face of the same picture is another image
    edit(meta / f"ijbc_{BOXES}", lambda x: [*x[:-1], score("0.9")(boxes[at + 2])])
    edit(
        meta / f"ijbc_{BOXES}",
        lambda x: [*x[:-1], f"{boxes[at].split()[0]} 1{x[-1].split(' ', 1)[1]}"],
    )
    assert "3 of 75" in read_protocol(ijb.parent).remarks[0]


def test_probes_that_are_enrolled_are_left_out(ijb):
    before = read_protocol(ijb.parent)
    probes = ijb / "meta" / "ijbc_1N_probe_mixed.csv"
    edit(probes, lambda x: [*x, "0,0,x", "40,4,x"])
    protocol = read_protocol(ijb.parent)
    assert protocol.probes.rows.tolist() == before.probes.rows.tolist()
    assert "2 of 14 probes are left out" in protocol.remarks[0]
    assert "template 0; templates 40, too" in protocol.remarks[0]
    edit(probes, lambda x: [*x[:-1], "40,3,x"])
    with pytest.raises(BctError, match="template 40 is of subject 4 in gallery_G2, of 3 in"):
        read_protocol(ijb.parent)
    edit(probes, lambda x: [x[0], "0,0,x"])
    with pytest.raises(BctError, match="all probes are templates of a gallery"):
        read_protocol(ijb.parent)


@pytest.mark.parametrize(
    ("file", "change", "word"),
    [
        (PAIRS, lambda x: [*x, "1 0 0"], "pair of templates 1 and 0 is genuine in one line"),
        (PAIRS, lambda x: [*x, "0 11 1"], "is genuine in one line, impostor in another"),
        (PAIRS, lambda x: [y for y in x if y.endswith("1")], "has no impostor pair"),
        (PAIRS, lambda x: [y for y in x if y.endswith("0")], "has no genuine pair"),
        (PAIRS, lambda x: ["0 0 1", *(y for y in x if y.endswith("0"))], "has no genuine pair"),
        ("1N_gallery_G1.csv", lambda x: x[:2], "has a single template"),
        ("1N_probe_mixed.csv", lambda x: x[:13], "gallery_G1 has all of the subjects"),
        ("1N_probe_mixed.csv", lambda x: [x[0], *x[13:]], "gallery_G1 has none of the subjects"),
    ],
)
def test_protocols_that_prove_nothing_are_refused(ijb, file, change, word):
    edit(ijb / "meta" / f"ijbc_{file}", change)
    with pytest.raises(BctError, match=word) as info:
        read_protocol(ijb.parent)
    assert len(str(info.value).splitlines()) == 2


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1, 1e5, 1e20, 1e30])
@pytest.mark.parametrize("mode", MODES[::2], ids=str)
def test_templates_do_not_depend_on_the_length_of_all_embeddings(scale, mode):
    _, templates = toy_templates()
    features = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    want = templates.aggregate(features, *mode[:2])
    scaled = (features * np.float32(scale)).astype(np.float32)
    if scale == 1:
        scaled = features.astype(np.float16).astype(np.float16)
    np.testing.assert_allclose(templates.aggregate(scaled, *mode[:2]), want, atol=2e-3)
    if scale in (1e20, 1e30):
        far = features.astype(np.float64) * scale**5
        np.testing.assert_allclose(templates.aggregate(far, *mode[:2]), want, atol=1e-6)


def test_an_embedding_that_is_not_finite_is_named():
    _, templates = toy_templates()
    features = np.ones((40, 6), np.float32)
    features[17, 2] = np.nan
    with pytest.raises(BctError, match="row 17 is not finite"):
        templates.aggregate(features)


def test_missing_folder_and_file(ijb, tmp_path):
    with pytest.raises(BctError, match="holds no IJBC/meta"):
        read_protocol(tmp_path)
    (ijb / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(BctError, match="gallery_G2"):
        read_protocol(ijb)
