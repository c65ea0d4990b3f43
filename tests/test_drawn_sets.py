"""Landmark views and drawn people: layouts, counts, seeds, refusals, and how hard they are."""

import csv
import os
import pickle
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.script import run_script

from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import read_json
from bct.protocols.gldv2 import open_gldv2
from bct.protocols.market import open_market
from bct.protocols.revisited import open_revisited
from tools import make_landmark_views, make_people
from tools.demo import landmarks
from tools.demo.drawn_set import make, stream

PARTS = ("bounding_box_train", "bounding_box_test", "query")


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    out = tmp_path_factory.mktemp("views") / "set"
    done = run_script("tools/make_landmark_views.py", out, "--seed", "3")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"wrote {out}: 200")
    return out


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    out = tmp_path_factory.mktemp("people") / "set"
    done = run_script("tools/make_people.py", out, "--seed", "3")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"wrote {out}: ")
    return out


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def gnd(views):
    return pickle.loads((views / "revisited/gnd_landmarkviews.pkl").read_bytes())


def file_of(views, part, name):
    return views / "gldv2" / part / name[0] / name[1] / name[2] / f"{name}.jpg"


def test_training_sets_of_landmarks(views):
    listed = open_images(views / "gldv2/label_20.txt")
    assert np.bincount(listed.labels).tolist() == [10] * 20
    assert {listed.image(k).shape for k in range(0, 200, 20)} == {(112, 112, 3)}
    header, *table = rows(views / "gldv2/train_clean.csv")
    assert header == ["landmark_id", "images"] and len(table) == 20
    ids = [int(i) for i, _ in table]
    assert ids == sorted(set(ids)) and ids != list(range(20))
    assert [name for _, names in table for name in names.split()] == [
        os.path.splitext(os.path.basename(name))[0].decode() for name in listed.names.tolist()
    ]
    header, *names = rows(views / "gldv2/train_label_to_category.csv")
    assert header == ["landmark_id", "category"] and [int(i) for i, _ in names] == ids
    photos = {path.stem for path in make_landmark_views.PHOTOS.glob("*.jpg")}
    assert {name for _, name in names} == photos - set(make_landmark_views.SCENES)


def test_gallery_and_queries_of_landmarks(views):
    truth = gnd(views)
    header, *index = rows(views / "gldv2/index.csv")
    index = [name for (name,) in index]
    assert header == ["id"] and index == truth["imlist"] and len(set(index)) == 204
    header, *solution = rows(views / "gldv2/retrieval_solution_v2.1.csv")
    assert header == ["id", "images", "Usage"]
    usages = Counter(usage for *_, usage in solution)
    assert usages == {"Private": 27, "Public": 13, "Ignored": 1}
    assert solution[-1][1:] == ["None", "Ignored"]
    queries = truth["qimlist"]
    assert [row[0] for row in solution[:-1]] == queries and len(queries) == 40
    sizes = Counter()
    for (_, answers, _), one in zip(solution[:-1], truth["gnd"], strict=True):
        easy, hard, junk = (one[kind] for kind in ("easy", "hard", "junk"))
        assert len({*easy, *hard, *junk}) == len(easy) + len(hard) + len(junk)
        assert set(answers.split()) == {index[k] for k in (*easy, *hard)}
        sizes[len(easy), len(hard), len(junk)] += 1
        assert len(one["bbx"]) == 4
    assert sizes == {(3, 4, 2): 36, (0, 4, 2): 4}
    for part, names in (("index", index), ("test", [row[0] for row in solution])):
        assert all(file_of(views, part, name).is_file() for name in names)
    for part, names in (("index", index[:5]), ("test", queries[:5])):
        for name in names:
            same = (views / f"revisited/jpg/{name}.jpg").read_bytes()
            assert file_of(views, part, name).read_bytes() == same
    assert len(list((views / "revisited/jpg").iterdir())) == 244


def test_boxes_lie_within_the_queries(views):
    truth = gnd(views)
    for name, one in zip(truth["qimlist"], truth["gnd"], strict=True):
        width, height = Image.open(views / f"revisited/jpg/{name}.jpg").size
        x0, y0, x1, y1 = one["bbx"]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and (x1 - x0, y1 - y0) == (112, 112)


def test_the_protocols_readers_open_them(views, people):
    tests = [
        (open_revisited(views / "revisited", "landmarkviews"), 40, 204),
        (open_gldv2(views / "gldv2", "private"), 27, 204),
        (open_gldv2(views / "gldv2", "public"), 13, 204),
        (open_market(people), len(os.listdir(people / "query")), None),
    ]
    for test, queries, gallery in tests:
        assert len(test.search.queries) == queries
        assert gallery in (None, len(test.search.gallery))
    assert list(tests[0][0].search.readings) == ["medium", "easy", "hard"]
    kept = [name for name in os.listdir(people / "bounding_box_test") if not name.startswith("-1")]
    assert len(tests[3][0].search.gallery) == len(kept)
    train = open_images(people)  # of the folder
    assert train.num_classes == 30 and train.class_names == sorted(train.class_names)


def small(path, box=None):
    """An image of 8 x 8 pixels without its mean, of length 1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.crop(box).resize((8, 8), Image.BOX), np.float64).ravel()
    pixels -= pixels.mean()
    return pixels / np.linalg.norm(pixels)


def precision(hits):
    """Mean precision at the hits of a ranking."""
    places = np.flatnonzero(hits)
    return float(np.mean((1 + np.arange(len(places))) / (1 + places)))


def test_landmarks_are_neither_trivial_nor_impossible(views):
    """By their raw pixels. Cutting out the box matters, and so does what is easy or hard."""
    truth = gnd(views)
    jpg = views / "revisited/jpg"
    gallery = np.stack([small(jpg / f"{name}.jpg") for name in truth["imlist"]])
    found = {}
    for cut in (True, False):
        for kind, other in (("easy", "hard"), ("hard", "easy")):
            precisions = []
            for name, one in zip(truth["qimlist"], truth["gnd"], strict=True):
                query = small(jpg / f"{name}.jpg", one["bbx"] if cut else None)
                order = np.argsort(-gallery @ query)
                order = order[~np.isin(order, one["junk"] + one[other])]
                if one[kind]:
                    precisions.append(precision(np.isin(order, one[kind])))
            found[cut, kind] = np.mean(precisions)
    assert 0.75 < found[True, "easy"] < 0.99 and 0.4 < found[True, "hard"] < 0.85
    assert found[True, "easy"] > found[True, "hard"] + 0.1
    assert found[False, "easy"] < 0.4 and found[False, "hard"] < 0.3


def parse(name):
    """Person and camera, apart from the reader's own way."""
    person, camera, *_ = name.split("_")
    return int(person), int(camera[1])


def test_people_are_laid_out_as_market(people):
    found = {part: [parse(name) for name in sorted(os.listdir(people / part))] for part in PARTS}
    train, test, query = ({pid for pid, _ in found[part]} for part in PARTS)
    assert len(train) == len(query) == 30 and not train & query and test == query | {0, -1}
    assert min(train | query) > 0 and max(train | query) <= 1501
    assert Counter(pid for pid, _ in found["bounding_box_test"] if pid < 1) == {0: 40, -1: 20}
    cameras = {camera for pairs in found.values() for _, camera in pairs}
    assert cameras == set(range(1, 7))
    asked = Counter(found["query"])
    assert set(asked.values()) == {1}  # a query by person and camera
    assert set(asked) == {pair for pair in found["bounding_box_test"] if pair[0] > 0}
    assert all(2 <= n <= 5 for n in Counter(pid for pid, _ in asked).values())
    about = read_json(people / "people.json")["counts"]
    assert about == {f"images in {part}": len(found[part]) for part in PARTS}
    frames = [int(n.split("_")[-2]) for part in PARTS for n in os.listdir(people / part)]
    assert len(set(frames)) == len(frames)
    with Image.open(next((people / "query").iterdir())) as image:
        assert (image.size, image.mode) == ((64, 128), "RGB")


def test_people_are_neither_trivial_nor_impossible(people):
    """By their raw pixels, where pictures of a person by the query's own camera don't count."""
    sides = {}
    for part in PARTS[1:]:
        files = sorted((people / part).iterdir())
        sides[part] = (
            np.stack([small(file) for file in files]),
            np.array([parse(file.name) for file in files]),
        )
    gallery, known = sides["bounding_box_test"]
    precisions = []
    for row, (pid, camera) in zip(*sides["query"], strict=True):
        order = np.argsort(-gallery @ row)
        person, seen_by = known[order].T
        counts = (person >= 0) & ~((person == pid) & (seen_by == camera))
        precisions.append(precision(person[counts] == pid))
    assert 0.05 < np.mean(precisions) < 0.75


@pytest.mark.parametrize("tool", [make_landmark_views, make_people])
def test_seeds(tool, views, people, tmp_path):
    """Equal seeds give equal bytes; no image of another seed is the same."""
    by_command = content({make_landmark_views: views, make_people: people}[tool])
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        tool.draw(tmp_path / str(seed), seed)
    again, other = (content(tmp_path / str(seed)) for seed in (3, 4))
    assert {k: v for k, v in by_command.items() if len(k.parts) > 1} == again
    images = [{v for k, v in files.items() if k.suffix == ".jpg"} for files in (again, other)]
    assert not images[0] & images[1] and min(map(len, images)) > 400
    assert again.keys() != other.keys()


def test_what_is_there_is_used_or_left_alone(people, tmp_path):
    before = content(people)
    done = run_script("tools/make_people.py", people, "--seed", "3")
    assert done.returncode == 0 and done.stdout.startswith(f"reusing {people}: ")
    (people / "mine.txt").write_text("a list that was made of the set")
    assert run_script("tools/make_people.py", people, "--seed", "3").returncode == 0
    (people / "mine.txt").unlink()
    done = run_script("tools/make_people.py", people, "--seed", "4")
    assert done.returncode == 1 and "seed is 3, asked for is 4" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "mine", tmp_path / "mine/letter.txt", tmp_path / "loop"):
        done = run_script("tools/make_people.py", out)
        assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 2
        assert "was not drawn by this tool" in done.stderr
    assert content(tmp_path / "mine") == {Path("letter.txt"): b"dear"}
    assert content(people) == before


def drawing(folder):
    (folder / "a.txt").write_text("a")
    return {"files": 1}


@pytest.mark.parametrize(
    "damage", ["changed", "missing", "no list", "no counts", "no hash", "no json"]
)
def test_damage_is_found(tmp_path, damage):
    out, settings = tmp_path / "set", {"seed": 1}
    (out).mkdir()  # an empty folder is as good as none
    assert make(out, "set.json", settings, drawing) == f"wrote {out}: 1 files"
    assert make(out, "set.json", settings, drawing) == f"reusing {out}: 1 files"
    about = (out / "set.json").read_text()
    if damage == "changed":
        (out / "a.txt").write_text("b")
    elif damage == "missing":
        (out / "a.txt").unlink()
    else:
        broken = {
            "no list": about.replace('"a.txt"', "3"),
            "no counts": about.replace('"counts"', '"count"'),
            "no hash": re.sub('"sha256": "[0-9a-f]+"', '"sha256": null', about),
            "no json": about[:-3],
        }[damage]
        (out / "set.json").write_text(broken)
    if damage == "no hash":
        (out / "a.txt").unlink()
    with pytest.raises(BctError, match=r"damaged|not valid JSON"):
        make(out, "set.json", settings, drawing)


def test_nothing_is_left_of_a_set_that_could_not_be_drawn(tmp_path):
    def fails(folder):
        drawing(folder)
        raise BctError("no", "none")

    with pytest.raises(BctError):
        make(tmp_path / "set", "set.json", {}, fails)
    assert not list(tmp_path.iterdir())


def test_streams_differ():
    keys = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (1,), (0, 0, 1)]
    draws = {stream(seed, *key).integers(2**62) for seed in (0, 1) for key in keys}
    assert len(draws) == 2 * len(keys)


def test_a_view_without_difficulty_is_the_photograph():
    """Warped by a homography that was solved for: its corners are where they should be."""
    photo = Image.open(make_landmark_views.PHOTOS / "big-ben.jpg")
    wide, rng = landmarks.widened(photo), np.random.default_rng(0)
    seen = landmarks.view(wide, 0, rng, photo.width)
    assert np.abs(seen.astype(float) - np.asarray(photo.convert("RGB"))).max() <= 1
    corners = landmarks.viewpoint(wide.size, 0.6, rng)
    a, b, c, d, e, f, g, h = landmarks.homography(corners, 50)
    for (x, y), target in zip([(0, 0), (50, 0), (50, 50), (0, 50)], corners, strict=True):
        w = g * x + h * y + 1
        assert np.allclose([(a * x + b * y + c) / w, (d * x + e * y + f) / w], target)
    kept = [np.ptp(landmarks.viewpoint(wide.size, t, rng), 0).min() for t in (0, 0.3, 0.6, 0.95)]
    assert all(one > other for one, other in pairwise(kept))


def test_every_photograph_has_its_credit():
    page = (make_landmark_views.PHOTOS / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in make_landmark_views.PHOTOS.glob("*.jpg")]
    lines = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(line[0].split("`")[1] for line in lines) == sorted(files)
    assert all(line[3].strip() in ("CC0", "PDM") and "](http" in line[1] for line in lines)
    scenes = {line[0].split("`")[1].removesuffix(".jpg") for line in lines if "*" in line[0]}
    assert scenes == set(make_landmark_views.SCENES)


def test_photographs_are_those_of_the_shared_files(shared):
    theirs = {p.name: p.read_bytes() for p in (shared / "data/landmarks/photos").glob("*.jpg")}
    assert theirs == {p.name: p.read_bytes() for p in make_landmark_views.PHOTOS.glob("*.jpg")}


def test_a_missing_photograph(monkeypatch, tmp_path):
    monkeypatch.setattr(make_landmark_views, "PHOTOS", tmp_path)
    with pytest.raises(BctError, match="holds 0 photographs"):
        make_landmark_views.draw(tmp_path, 0)
