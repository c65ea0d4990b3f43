"""The drawn demo data: formats, determinism, disjoint people, landmarks, refusals."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from support.script import run_script

from bct.data.images import decode
from bct.data.recordio import RecordReader
from bct.data.sets import open_images
from bct.errors import BctError
from bct.protocols.pairs import load_bin
from tools import make_demo_data
from tools.demo import people as demo_people
from tools.demo.faces import draw
from tools.ijbc.align import TEMPLATE, similarity_to_template

TINY = {"identities": 3, "images": 4, "eval_identities": 4, "seed": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "data"
    assert make_demo_data.make(out, **TINY, workers=2)
    return out


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(path, separator=None):
    return [line.split(separator) for line in path.read_text().splitlines()]


def cli(*args):
    return run_script("tools/make_demo_data.py", *args)


def test_training_set_is_in_insightface_layout(data):
    faces = open_images(data)
    assert len(faces) == 12
    assert faces.num_classes == 3
    assert faces.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    image = np.empty((112, 112, 3), np.uint8)
    for i in range(len(faces)):
        faces.load(i, image)
        assert image.std() > 10  # a picture, not a blank
    assert (data / "property").read_text() == "3,112,112\n"

    reader = RecordReader(data / "train.rec")
    assert reader.keys.tolist() == [*range(1, 16), 0]  # the header comes last
    assert reader.read(0)[0].label.tolist() == [13, 16]
    assert [reader.read(key)[0].label.tolist() for key in (13, 14, 15)] == [[1, 5], [5, 9], [9, 13]]
    assert all(reader.read(key)[0].id == key for key in range(16))
    assert [key for key in range(16) if len(reader.read(key)[1]) == 0] == [0, 13, 14, 15]


def test_verification_set_is_balanced_and_without_repeats(data):
    pairs = load_bin(data / "demo.bin")
    assert pairs.images.shape == (2 * 40, 112, 112, 3)
    assert pairs.issame.tolist() == [True, False] * 20
    first, second = pairs.images[0::2], pairs.images[1::2]
    assert not (first == second).all(axis=(1, 2, 3)).any()  # no picture is compared with itself
    genuine = zip(first[::2], second[::2], strict=True)
    genuine = {tuple(sorted((a.tobytes(), b.tobytes()))) for a, b in genuine}
    assert len(genuine) == 20


def test_same_parameters_same_bytes_whatever_the_workers(data, tmp_path):
    make_demo_data.make(tmp_path / "one", **TINY, workers=1)
    again = contents(tmp_path / "one")
    assert again == contents(data)
    make_demo_data.make(tmp_path / "other", **{**TINY, "seed": 6}, workers=1)
    other = contents(tmp_path / "other")
    for name in map(type(next(iter(again))), ("train.rec", "demo.bin", "IJBC/loose_crop/1.jpg")):
        assert other[name] != again[name]


def test_people_share_no_parameters():
    numbers = [*range(12), *range(make_demo_data.EVAL_FIRST, make_demo_data.EVAL_FIRST + 12)]
    people = [vars(make_demo_data.person(0, number)) for number in numbers]
    for name in [*demo_people._MEASURES, "skin", "hair", "iris_colour", "lips", "rim", "waves"]:
        values = {np.asarray(person[name]).tobytes() for person in people}
        assert len(values) == len(people), name


def test_numbers_and_uses_have_streams_of_their_own():
    """numpy pads short seeds with zeros, which would make (3,) and (3, 0) the same stream."""
    keys = [(seed, use, a, b) for seed in (0, 1) for use in (0, 1) for a in (0, 1) for b in (0, 1)]
    draws = {make_demo_data.stream(*key).integers(2**63) for key in keys}
    assert len(draws) == len(keys)


def test_landmarks_fit_the_template(data):
    """A similarity brings them there up to the pose, the person and the detector's noise."""
    lines = rows(data / "IJBC/meta/ijbc_name_5pts_score.txt")
    points = np.array([line[1:11] for line in lines], float).reshape(-1, 5, 2)
    matrix = similarity_to_template(points)
    fitted = points @ matrix[:, :2, :2].transpose(0, 2, 1) + matrix[:, None, :2, 2]
    error = np.linalg.norm(fitted - TEMPLATE, axis=2)
    assert np.median(error) < 4
    assert error.mean(1).max() < 10
    swapped = similarity_to_template(points[:, [1, 0, 2, 4, 3]])  # left for right: no fit at all
    assert (swapped[:, 0, 0] < 0.5 * matrix[:, 0, 0]).all()


def test_landmarks_are_where_the_features_were_drawn(monkeypatch):
    """In a sharp, evenly lit picture pupils are dark and the whites beside them are light."""
    face = make_demo_data.person(0, 3)
    monkeypatch.setattr("tools.demo.faces.LANDMARK_NOISE", 0.0)
    for number in range(6):
        picture = demo_people.nuisance(make_demo_data.stream(0, 1, 3, number))
        plain = {"blur": 0, "noise": 0, "eyes": 1, "gaze": 0, "slant": 0, "occlusion": None}
        vars(picture).update(plain, exposure=1, gamma=1, warmth=0, tint=0, grey=False)
        image, landmarks = draw(face, picture)
        grey = image.mean(2)
        cos, sin = np.cos(picture.roll), np.sin(picture.roll)
        for x, y in landmarks[:2]:
            reach = 0.16 * picture.scale  # from the pupil along the eye
            beside = [grey[round(y + s * reach * sin), round(x + s * reach * cos)] for s in (-1, 1)]
            assert grey[round(y), round(x)] < 60 < 100 < max(beside)


def test_ijbc_layout(data):
    meta, crops = data / "IJBC/meta", data / "IJBC/loose_crop"
    points, media = rows(meta / "ijbc_name_5pts_score.txt"), rows(meta / "ijbc_face_tid_mid.txt")
    names = [row[0] for row in points]
    assert names == [row[0] for row in media]
    assert sorted(names) == sorted(p.name for p in crops.iterdir())
    assert names != sorted(names, key=lambda name: int(name[:-4]))  # shuffled
    for name, row in zip(names, points, strict=True):
        height, width, _ = decode((crops / name).read_bytes()).shape
        x, y = np.array(row[1:11], float).reshape(5, 2).T
        assert 0 < x.min() < x.max() < width
        assert 0 < y.min() < y.max() < height
        assert x[0] < x[1]
        assert x[3] < x[4]
        assert 0.5 <= float(row[11]) <= 1

    template_of = {name: int(template) for name, template, _ in media}
    sizes = Counter(template_of.values())
    assert len(sizes) == 4 * 7
    assert set(sizes.values()) <= {1, 2, 3, 4}
    assert max(sizes) > len(sizes)  # template ids have gaps
    in_medium = {}
    for _, template, medium in media:
        in_medium.setdefault(medium, set()).add(template)
    assert all(len(templates) == 1 for templates in in_medium.values())

    subject, listed = {}, {}
    for part in ("gallery_G1", "gallery_G2", "probe_mixed"):
        header, *lines = rows(meta / f"ijbc_1N_{part}.csv", ",")
        assert header == ["TEMPLATE_ID", "SUBJECT_ID", "FILENAME", "SIGHTING_ID"]
        for template, person, name, medium in lines:
            assert [name[4:], template, medium] in media
            subject[int(template)] = person
        listed[part] = {int(line[0]) for line in lines}
    assert [len(listed[part]) for part in listed] == [2, 2, 24]
    gallery = listed["gallery_G1"] | listed["gallery_G2"]
    assert len({subject[template] for template in gallery}) == 4

    pairs = [tuple(map(int, row)) for row in rows(meta / "ijbc_template_pair_label.txt")]
    assert len(set(pairs)) == len(pairs) == 4 * 24
    assert {a for a, _, _ in pairs} == gallery
    assert {b for _, b, _ in pairs} == listed["probe_mixed"]
    assert all(label == (subject[a] == subject[b]) for a, b, label in pairs)
    assert sum(label for _, _, label in pairs) == 24


def test_images_of_a_medium_are_near_duplicates(data):
    meta = data / "IJBC/meta"
    template_and_medium = {name: row for name, *row in rows(meta / "ijbc_face_tid_mid.txt")}
    points = {row[0]: np.array(row[1:11], float) for row in rows(meta / "ijbc_name_5pts_score.txt")}
    within, between = [], []
    names = sorted(points, key=lambda name: int(name[:-4]))
    for a, b in pairwise(names):
        if template_and_medium[a][0] == template_and_medium[b][0]:
            same = template_and_medium[a][1] == template_and_medium[b][1]
            (within if same else between).append(np.abs(points[a] - points[b]).mean())
    assert np.median(within) < 0.6 * np.median(between)


def test_detector_score_falls_with_blur_and_cover():
    rng = np.random.default_rng
    clear = demo_people.nuisance(rng(0))
    vars(clear).update(blur=0.0, yaw=0.0, occlusion=None)
    blurred, covered = (demo_people.next_frame(clear, rng(1)) for _ in range(2))
    blurred.blur, covered.occlusion = 4.0, "mask"
    score = demo_people.detector_score(clear, rng(2))
    assert 0.9 < score <= 1
    assert demo_people.detector_score(blurred, rng(2)) < score - 0.1
    assert demo_people.detector_score(covered, rng(2)) < score - 0.1


def test_second_run_reuses_and_other_parameters_are_refused(data):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    before = (data / "demo.json").stat().st_mtime_ns
    result = cli("--out", data, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("reusing ")
    assert (data / "demo.json").stat().st_mtime_ns == before
    manifest = json.loads((data / "demo.json").read_text())
    assert manifest["counts"]["training images"] == 12
    assert TINY.items() <= manifest["parameters"].items()

    intact = contents(data)
    result = cli("--out", data, *options[:-1], "--seed=6")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 2
    assert "seed is 5, asked for is 6" in result.stderr
    assert contents(data) == intact


def test_damaged_set_is_not_reused_and_force_mends_it(data, tmp_path):
    out = tmp_path / "data"
    for path, content in contents(data).items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
    stale = out / "train_part_30_class.rec"  # of another data set, as far as --force can know
    stale.write_bytes(b"")
    (out / "train.rec").write_bytes(b"short")
    with pytest.raises(BctError, match=r"train\.rec is missing or changed"):
        make_demo_data.make(out, **TINY)
    assert make_demo_data.make(out, **TINY, force=True)
    assert contents(out) == contents(data)
    assert not stale.exists()


def test_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(BctError, match="not a demo data set"):
            make_demo_data.make(tmp_path, **TINY, force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(BctError, match="not a demo data set"):
        make_demo_data.make(tmp_path / "thesis.txt", **TINY)


@pytest.mark.parametrize("before", [False, True])
def test_interrupted_run_leaves_things_as_they_were(data, tmp_path, monkeypatch, before):
    out = tmp_path / "data"
    if before:
        out.mkdir()
        (out / "demo.json").write_text("{}")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_demo_data, "_write_protocol", fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data.make(out, **TINY, workers=1, force=True)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == (
        ["data", "data/demo.json"] if before else []
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("identities", 1), ("images", 1), ("eval_identities", 1), ("seed", -1), ("workers", 0)],
)
def test_bad_arguments(tmp_path, name, value):
    with pytest.raises(BctError, match=f"--{name.replace('_', '-')} {value} is too small"):
        make_demo_data.make(tmp_path / "data", **{**TINY, name: value})
    assert not any(tmp_path.iterdir())


def test_too_many_images_for_float_labels(tmp_path):
    with pytest.raises(BctError, match="too many"):
        make_demo_data.make(tmp_path / "data", identities=900_000, images=20)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"parameters": [], "counts": 1}', "7"])
def test_a_manifest_that_says_nothing(tmp_path, text):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/demo.json").write_text(text)
    with pytest.raises(BctError, match=r"demo\.json is damaged"):
        make_demo_data.make(tmp_path / "demo", 2, 2, 2)
