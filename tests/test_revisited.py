"""Revisited Oxford and Paris: the files, the three readings, boxes, distractors."""

import json
import os
import pickle
import shutil
from copy import deepcopy

import numpy as np
import pytest
from support.landmark_sets import drawn_landmarks
from support.plain_precision import cosines, places, trapezoid

from bct.data.gnd_files import find_gnd, read_gnd
from bct.errors import BctError
from bct.metrics.relevance import check, positives
from bct.metrics.retrieval import retrieve_readings
from bct.models.model import open_model
from bct.protocols.image_search import sets_of
from bct.protocols.revisited import READINGS, open_revisited
from bct.protocols.search_tests import sides_of

LETTER = {"medium": "M", "easy": "E", "hard": "H"}


def small(**changes) -> dict:
    """A ground truth of three queries and six images."""
    entry = {"bbx": [0, 0, 8, 6.5], "easy": [0], "hard": [1, 2], "junk": [3]}
    entries = [dict(entry), dict(entry, easy=[], hard=[4]), dict(entry, easy=[5], hard=[])]
    entries[0].update(changes)
    names = [f"i{k}" for k in range(6)]
    return deepcopy({"gnd": entries, "imlist": names, "qimlist": ["a", "b", "c"]}, Lists())


class Lists(dict):
    """A memory for deepcopy that has none: no list is in two places."""

    def get(self, key, default=None):
        return default


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("executed",)

    def __deepcopy__(self, _):
        return self


def written(folder, said, protocol=2):
    path = folder / "gnd_small.pkl"
    path.write_bytes(pickle.dumps(said, protocol))
    return path


def refused(path, words):
    with pytest.raises(BctError) as error:
        open_revisited(path)
    assert words in error.value.what, error.value.what
    assert "\n" not in error.value.what + error.value.do
    assert error.value.do


@pytest.mark.parametrize(
    ("name", "gallery", "without_easy", "landmarks"),
    [("roxford5k", 4993, 2, 12), ("rparis6k", 6322, 0, 11)],
)
def test_real_lists(shared, name, gallery, without_easy, landmarks):
    root = shared / "data" / "landmarks" / "revisited"
    protocol = open_revisited(root, name)
    search = protocol.search
    assert (len(search.queries), len(search.gallery)) == (70, gallery)
    assert search.precision == "trapezoid"
    assert search.relevance is search.readings["medium"]
    assert list(search.readings) == ["medium", "easy", "hard"]
    gnd = pickle.loads((root / f"gnd_{name}.pkl").read_bytes())
    for reading, (good, ignored) in READINGS.items():
        relevance = search.readings[reading]
        check(relevance, 70, gallery)
        for lists, grades in ((relevance.positive, good), (relevance.ignored, ignored)):
            for query in (0, 33, 69):
                wanted = {row for grade in grades for row in gnd["gnd"][query][grade]}
                found = lists.of(np.array([query])).rows.tolist()
                assert set(found) == wanted
                assert len(found) == len(wanted)
    without = {reading: (positives(r) == 0).sum() for reading, r in search.readings.items()}
    assert without == {"medium": 0, "easy": without_easy, "hard": 0}
    assert len(protocol.remarks) == bool(without_easy)
    # the queries of a landmark follow each other, five at first; one of Oxford's shows its back
    of_query, of_item = np.split(protocol.subjects, [70])
    assert of_query.max() + 1 == landmarks
    if name == "rparis6k":
        assert (of_query[:55] == np.repeat(np.arange(11), 5)).all()
    named = np.unique(np.concatenate([e["easy"] + e["hard"] for e in gnd["gnd"]]))
    assert (np.flatnonzero(of_item >= 0) == named).all()


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_precision_of_real_lists(shared, name):
    golden = shared / "golden" / "landmarks_reid" / "protocols"
    expected = json.loads((golden / "expected.json").read_text())[f"real/{name}"]["expected"]
    rows = np.load(golden / "real_lists_descriptors.npz")
    search = open_revisited(shared / "data" / "landmarks" / "revisited", name).search
    scores = cosines(rows[f"{name}_query"], rows[f"{name}_db"])
    for reading, relevance in search.readings.items():
        ap = np.array([trapezoid(found) for found in places(scores, relevance)])
        assert np.nanmean(ap) == pytest.approx(expected[LETTER[reading]]["mAP"], abs=1e-9)
        assert np.isfinite(ap).sum() == expected[LETTER[reading]]["queries"]


def test_synthetic_golden(shared):
    golden = shared / "golden" / "landmarks_reid" / "protocols"
    expected = json.loads((golden / "expected.json").read_text())["revisited"]["expected"]
    arrays = np.load(golden / "inputs.npz")
    protocol = open_revisited(golden / "gnd_synthetic.pkl")
    assert protocol.name == "synthetic"
    scores = cosines(arrays["rev_query"], arrays["rev_db"])
    for reading, relevance in protocol.search.readings.items():
        ap = [trapezoid(found) for found in places(scores, relevance)]
        wanted = [np.nan if v is None else v for v in expected[LETTER[reading]]["ap"]]
        np.testing.assert_allclose(ap, wanted, atol=1e-12)
    assert sum("no positive" in remark for remark in protocol.remarks) == 3


def test_real_descriptors_of_oxford(shared, tmp_path):
    features = shared / "data" / "landmarks" / "oxford_features" / "oxford_features.fvecs"
    expected = json.loads((shared / "golden/landmarks_reid/real_oxford/expected.json").read_text())
    protocol = open_revisited(
        shared / "data" / "landmarks" / "revisited", "roxford5k", standard=True, stored=True
    )
    raw = np.fromfile(features, "<f4").reshape(5063, 129)
    names = [[images.describe(k) for k in range(len(images))] for images in sets_of(protocol)]
    place = {name: k for k, name in enumerate(sorted(names[0] + names[1]))}
    files = [tmp_path / f"{side}.fvecs" for side in ("queries", "gallery")]
    for file, side in zip(files, names, strict=True):
        raw[[place[name] for name in side]].tofile(file)
    rows = open_model(",".join(map(str, files))).rows(protocol.images)
    sides, search = sides_of(protocol.search, rows), protocol.search
    found = retrieve_readings(*sides, search.readings, ks=(1, 5, 10), way=search.precision)
    for reading, result in found.items():
        wanted = expected["new_self"][LETTER[reading]]
        assert result.mean_ap == pytest.approx(wanted["mAP"], abs=1e-7)
        assert result.queries == wanted["queries"]


def test_drawn_views_with_and_without_boxes(shared):
    root = drawn_landmarks(shared) / "revisited"
    whole, boxed = (open_revisited(root, "landmarkviews", standard=on) for on in (False, True))
    assert [len(images) for images in sets_of(whole)] == [40, 204]
    assert boxed.images.image(0).shape == (112, 112, 3)
    assert min(whole.images.image(0).shape[:2]) > 112
    x, y = (int(side) for side in read_gnd(root / "gnd_landmarkviews.pkl").boxes[0][:2])
    inside = whole.images.image(0)[y : y + 112, x : x + 112]
    assert (boxed.images.image(0) == inside).all()
    assert whole.fingerprint != boxed.fingerprint
    assert sets_of(whole)[1].fingerprint == sets_of(boxed)[1].fingerprint
    lines = (drawn_landmarks(shared) / "classes.txt").read_text().split("\n")
    assert (whole.subjects[:40] == np.repeat(np.arange(20), 2)).all()
    assert len(lines) - 1 == 20
    assert (positives(whole.search.readings["easy"]) == 0).sum() == 4
    assert (positives(whole.search.relevance) == 7).sum() == 36


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("gnd_roxford5k.pkl", "roxford5k/jpg"),
        ("gnd_roxford5k.pkl", "jpg"),
        ("roxford5k/gnd_roxford5k.pkl", "roxford5k/jpg"),
        ("annotation/roxford/roxford.pkl", "."),
        ("annotation/gnd_roxford5k.pkl", "jpg"),
    ],
)
def test_published_layouts(shared, tmp_path, file, images):
    drawn = drawn_landmarks(shared) / "revisited"
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(drawn / "gnd_landmarkviews.pkl", tmp_path / file)
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    for image in (drawn / "jpg").iterdir():
        (tmp_path / images / image.name).symlink_to(image)
    protocol = open_revisited(tmp_path, "roxford5k")
    assert protocol.images.image(243).shape == (112, 112, 3)
    assert find_gnd(tmp_path, "roxford5k") == tmp_path / file


@pytest.mark.parametrize(
    ("inside", "asked", "do"),
    [
        ("sets/gnd_small.pkl", "", "give the folder that has it: {}/sets"),
        ("gnd_small.pkl", "jpg", "give the folder that has it: {}"),
        ("bounding_box_test/a.jpg", "", "python eval/reid.py {}"),
        ("index.csv", "", "--data gldv2"),
        ("a.txt", "", "give the folder that has it"),
    ],
)
def test_another_folder(tmp_path, inside, asked, do):
    (tmp_path / asked).mkdir(exist_ok=True)
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).touch()
    with pytest.raises(BctError, match=r"no gnd_small\.pkl") as error:
        find_gnd(tmp_path / asked, "small")
    assert error.value.do.endswith(do.format(tmp_path))


def test_lists_without_images(tmp_path):
    written(tmp_path, small())
    protocol = open_revisited(tmp_path, "small")
    assert (len(protocol.search.queries), len(protocol.images)) == (3, 9)
    assert protocol.fingerprint == open_revisited(tmp_path / "gnd_small.pkl").fingerprint
    with pytest.raises(BctError, match=r"names a\.jpg, but no folder of its images"):
        protocol.images.image(0)
    with pytest.raises(BctError, match=r"no gnd_other\.pkl") as error:
        open_revisited(tmp_path, "other")
    assert "gnd_small.pkl" in error.value.do
    assert open_revisited(tmp_path).name == "small"
    assert open_revisited(tmp_path, "gnd_small.pkl").name == "small"
    (tmp_path / "gnd_other.pkl").touch()
    with pytest.raises(BctError, match=r"no gnd_\.pkl"):
        open_revisited(tmp_path)


def test_missing_images(shared, tmp_path):
    shutil.copytree(drawn_landmarks(shared) / "revisited", tmp_path / "set")
    gnd = read_gnd(tmp_path / "set" / "gnd_landmarkviews.pkl")
    gone = [*gnd.gallery[3:15], gnd.queries[5]]
    for name in gone:
        (tmp_path / "set" / "jpg" / os.fsdecode(name)).unlink()
    with pytest.raises(BctError, match="1 of the 40 images") as error:
        open_revisited(tmp_path / "set", "landmarkviews")
    assert gnd.queries[5].decode() in error.value.what
    (tmp_path / "set" / "jpg" / os.fsdecode(gnd.queries[5])).touch()
    with pytest.raises(BctError, match="12 of the 204 images") as error:
        open_revisited(tmp_path / "set", "landmarkviews")
    assert [name.decode() in error.value.what for name in gnd.gallery[3:15]] == [True] * 10 + [
        False
    ] * 2
    assert "lacking" in error.value.do
    assert len(open_revisited(tmp_path / "set", "landmarkviews", stored=True).images) == 244
    (tmp_path / "set" / "jpg" / os.fsdecode(gnd.queries[5])).unlink()
    protocol = open_revisited(tmp_path / "set", "landmarkviews", standard=True, lacking=True)
    assert [len(images) for images in sets_of(protocol)] == [39, 192]
    assert sum("are not in" in remark for remark in protocol.remarks) == 2
    left = [row for row in range(204) if row not in range(3, 15)]
    relevance = protocol.search.relevance
    found = [left[row] for row in relevance.positive.of(np.array([5])).rows]
    wanted = np.concatenate([gnd.graded["easy"][6], gnd.graded["hard"][6]])
    assert sorted(found) == sorted(set(wanted.tolist()) & set(left))
    check(relevance, 39, 192)
    assert sets_of(protocol)[0].listed[0] == 40


def test_distractors(shared, tmp_path):
    root = drawn_landmarks(shared)
    folder = tmp_path / "revisitop1m"
    (folder / "jpg" / "a").mkdir(parents=True)
    photos = sorted((shared / "data" / "landmarks" / "photos").glob("*.jpg"))[:5]
    for photo in photos:
        (folder / "jpg" / "a" / photo.name).symlink_to(photo)
    plain = open_revisited(root / "revisited", "landmarkviews")
    protocol = open_revisited(root / "revisited", "landmarkviews", distractors=folder)
    assert len(protocol.search.gallery) == 209
    assert len(sets_of(protocol)) == 2
    assert protocol.name == "landmarkviews_revisitop1m"
    assert protocol.images.image(248).shape == (264, 264, 3)
    assert (protocol.subjects[-5:] == -1).all()
    assert "5 further images" in " ".join(protocol.remarks)
    for reading in READINGS:
        mine, without = (p.search.readings[reading] for p in (protocol, plain))
        assert (mine.positive.rows == without.positive.rows).all()
        check(mine, 40, 209)
    assert plain.fingerprint != protocol.fingerprint
    (folder / "revisitop1m.txt").write_text(
        "".join(f"a/{photo.stem}\n" for photo in photos) + "a/gone\nb/gone.jpg\n"
    )
    with pytest.raises(BctError, match=r"2 of the 7 images .*a/gone.jpg, b/gone.jpg"):
        open_revisited(root / "revisited", "landmarkviews", distractors=folder)
    protocol = open_revisited(root / "revisited", "landmarkviews", distractors=folder, lacking=True)
    assert len(protocol.search.gallery) == 209
    assert sets_of(protocol)[1].listed[0] == 211
    with pytest.raises(BctError, match="no distractors"):
        open_revisited(root / "revisited", "landmarkviews", distractors=tmp_path / "none")


def test_arrays_and_python_2_are_read_too(tmp_path):
    said = small(easy=np.array([0]), hard=np.array([1, 2], np.int32))
    for protocol in (0, 1, 2, 3, 4):
        found = read_gnd(written(tmp_path, said, protocol))
        assert [rows.tolist() for rows in found.graded["hard"]] == [[1, 2], [4], []]
        assert found.boxes[0].tolist() == [0, 0, 8, 6.5]
        assert found.gallery[0] == b"i0.jpg"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (small(easy=[6]), "its easy image 6 lies outside of imlist, which has 6"),
        (small(junk=[-1]), "its junk image -1 lies outside"),
        (small(easy=[10**30]), "lies outside"),
        (small(easy=[0, 1]), "image 1 (i1.jpg) is in easy and in hard"),
        (small(junk=[2]), "image 2 (i2.jpg) is in hard and in junk"),
        (small(hard=[1, 1]), "image 1 (i1.jpg) is in hard twice"),
        (small(hard=[1.0]), "no list hard of rows"),
        (small(hard=[True]), "no list hard of rows"),
        (small(hard=None), "no list hard of rows"),
        (small(bbx=[0, 0, 5]), "its bbx is no box"),
        (small(bbx=[9, 0, 5, 5]), "its bbx is no box"),
        (small(bbx=[0, 0, float("nan"), 5]), "its bbx is no box"),
        (small(bbx=None), "1 of 3 queries have no bbx"),
        (small() | {"qimlist": ["a", "b"]}, "3 entries gnd for 2 queries"),
        (small() | {"gnd": None}, "no entries gnd for 3 queries"),
        (small() | {"gnd": [[], {}, {}]}, "query 0 (a.jpg) has no lists"),
        (small() | {"imlist": ["a"] * 6}, "imlist has a.jpg twice"),
        (small() | {"imlist": []}, "no imlist"),
        (small() | {"imlist": ["../x"] * 6}, "twice"),
        (small() | {"imlist": [f"../{k}" for k in range(6)]}, "is not below the folder"),
        (small() | {"imlist": [1, 2, 3, 4, 5, 6]}, "entry 0 of imlist is no name"),
        (small() | {"imlist": ["a\0b", "c", "d", "e", "f", "g"]}, "entry 0 of imlist"),
        ([1, 2], "no pickle of plain lists"),
        (small(junk=Foreign()), "it asks for posix.mkdir"),
        (small() | {"more": Foreign()}, "it asks for posix.mkdir"),
        (Foreign(), "it asks for posix.mkdir"),
    ],
)
def test_bad_ground_truth(tmp_path, monkeypatch, said, words):
    monkeypatch.chdir(tmp_path)
    refused(written(tmp_path, said), words)
    assert not (tmp_path / "executed").exists()


def test_damaged_ground_truth(shared, tmp_path):
    data = (shared / "golden/landmarks_reid/protocols/gnd_synthetic.pkl").read_bytes()
    path = tmp_path / "gnd_small.pkl"
    for end in range(0, len(data), 97):
        path.write_bytes(data[:end])
        refused(path, "no pickle of plain lists")
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            open_revisited(path)
        except BctError as error:
            assert "\n" not in error.what + error.do


def test_one_array_for_many_queries_is_no_bomb(tmp_path):
    rows = np.arange(1 << 14, dtype=np.uint16)
    entries = [{"bbx": [0, 0, 1, 1], "easy": rows, "hard": [], "junk": []} for _ in range(100)]
    names = [f"{k}" for k in range(1 << 14)]
    said = {"gnd": entries, "imlist": names, "qimlist": names[:100]}
    refused(written(tmp_path, said), "names more images than it has room for")


def test_queries_without_positives(tmp_path):
    said = small()
    for entry in said["gnd"]:
        entry["junk"] += entry.pop("easy")
        entry["easy"] = []
    protocol = open_revisited(written(tmp_path, said))
    assert list(protocol.search.readings) == ["medium", "hard"]
    assert protocol.remarks == [
        "1 of 3 queries have no positive image (medium) and count in no mean: c.jpg.",
        "No query has a positive image (easy): there are no such figures.",
        "1 of 3 queries have no positive image (hard) and count in no mean: c.jpg.",
    ]
    assert protocol.subjects[:3].tolist() == [0, 1, -1]
    for entry in said["gnd"]:
        entry["hard"] = []
    refused(written(tmp_path, said), "none of the 3 queries of")


def test_standard_wants_boxes(tmp_path):
    said = small()
    for entry in said["gnd"]:
        del entry["bbx"]
    path = written(tmp_path, said)
    assert len(open_revisited(path).images) == 9
    with pytest.raises(BctError, match="no boxes"):
        open_revisited(path, standard=True)
