"""What is in both sets of a search does not find itself: noise has figures of noise."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from support.pictures import jpeg, write_faces
from support.script import run_script

from bct.data.sets import open_images
from bct.errors import BctError
from bct.protocols import overlap
from bct.protocols.image_search import open_search
from bct.protocols.overlap import shared_images, with_a_twin

CLASSES, EACH = 6, 4


def make_set(folder, classes=range(CLASSES), variants=range(EACH)):
    for c in classes:
        (folder / f"c{c}").mkdir(parents=True)
        for v in variants:
            (folder / f"c{c}/{v}.jpg").write_bytes(jpeg(c, v, 16))
    return folder


def test_images_are_known_by_their_bytes_whatever_they_are_called(tmp_path):
    queries = make_set(tmp_path / "queries")
    gallery = make_set(tmp_path / "gallery", variants=range(4, 8))
    assert not shared_images(*map(open_images, (queries, gallery))).counts().any()
    shutil.copy(queries / "c2/3.jpg", gallery / "c2/9.jpg")  # row 14 of the gallery
    shutil.copy(queries / "c2/3.jpg", gallery / "c0/9.jpg")  # another class, row 4
    (gallery / "c1/link.jpg").symlink_to(queries / "c1/0.jpg")  # row 9
    found = shared_images(*map(open_images, (queries, gallery)))
    assert np.flatnonzero(found.counts()).tolist() == [4, 11]
    assert found.rows.tolist() == [9, 4, 14]


def test_files_and_records_meet(tmp_path):
    records = open_images(write_faces(tmp_path / "train.rec", [2, 2]))
    folder = tmp_path / "faces/c0"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(bytes(records.payload(2)[0]))
    (folder / "b.jpg").write_bytes(jpeg(5, 5))
    found = shared_images(open_images(tmp_path / "faces"), records)
    assert found.counts().tolist() == [1, 0] and found.rows.tolist() == [2]


def test_the_same_images_are_refused_under_any_name(tmp_path):
    queries = make_set(tmp_path / "queries")
    shutil.copytree(queries, tmp_path / "copy")
    moved = make_set(tmp_path / "moved", variants=())
    for file in queries.rglob("*.jpg"):
        shutil.copy(file, moved / file.parent.name / f"x{file.name}")
    (tmp_path / "list.txt").write_text(
        "# root: queries\n"
        + "".join(f"c{c}/{v}.jpg {c}\n" for v in range(EACH) for c in range(CLASSES))
    )
    for gallery in (queries, tmp_path / "copy", moved, f"{queries}/../queries"):
        with pytest.raises(BctError, match="the very images of the queries") as info:
            open_search(queries, gallery)
        assert "--leave-one-out" in info.value.do
    with pytest.raises(BctError, match="the very images"):
        open_search(tmp_path / "list.txt", queries)


def run(tmp_path, *arguments):
    common = ("-o", tmp_path / "out", "--name", "r", "--overwrite", "--resamples", "20")
    return run_script("eval/retrieval.py", *common, *arguments)


def test_some_queries_in_the_gallery(tmp_path):
    """They are counted, named and left out of their own rankings; noise finds by chance."""
    queries = make_set(tmp_path / "queries")
    gallery = make_set(tmp_path / "gallery", variants=range(2, 10))  # has 2 and 3 of each class
    rng = np.random.default_rng(0)
    q = rng.standard_normal((CLASSES * EACH, 16)).astype(np.float32)
    g = rng.standard_normal((CLASSES * 8, 16)).astype(np.float32)
    own = {}
    for c in range(CLASSES):
        for v in (2, 3):
            own[c * EACH + v] = c * 8 + v - 2
            g[c * 8 + v - 2] = q[c * EACH + v]
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "g.npy", g)
    done = run(tmp_path, "-m", f"{tmp_path}/q.npy,{tmp_path}/g.npy",
               "--data", queries, "--gallery", gallery, "--backfill", "random",
               "-m_old", f"{tmp_path}/q.npy,{tmp_path}/g.npy")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "12 of 24 queries are in the gallery, too" in done.stdout
    assert f"{queries}/c0/2.jpg is {gallery}/c0/2.jpg" in done.stdout
    unit_q, unit_g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    ap, first = [], []
    for i, scores in enumerate(unit_q @ unit_g.T):
        kept = np.arange(len(g)) != own.get(i, -1)
        right = (np.arange(len(g)) // 8 == i // EACH)[kept]
        ap.append(average_precision_score(right, scores[kept]))
        first.append(right[scores[kept].argmax()])
    found = json.loads((tmp_path / "out/r.json").read_text())
    figures = found["tests"]["new / new"]["all queries"]
    assert figures["map"] == pytest.approx(np.mean(ap))
    assert figures["top1"] == pytest.approx(np.mean(first)) and figures["top1"] < 0.5
    assert found["remarks"][0] in done.stdout
    flat = found["backfill"]["new"]["random"]["map"]["values"]
    assert flat == pytest.approx([np.mean(ap)] * 11)


def test_vectors_of_one_file_for_two_sets_are_refused(tmp_path):
    """The images differ, the vectors do not: noise would find itself."""
    queries = make_set(tmp_path / "queries")
    gallery = make_set(tmp_path / "gallery", variants=range(4, 8))
    rows = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
    other = np.random.default_rng(1).standard_normal((24, 8)).astype(np.float32)
    for name, array in (("a", rows), ("turned", rows[::-1]), ("b", other)):
        np.save(tmp_path / f"{name}.npy", array)
    sets = ("--data", queries, "--gallery", gallery)
    for gallery_rows in ("a", "turned"):
        done = run(tmp_path, "-m", f"{tmp_path}/a.npy,{tmp_path}/{gallery_rows}.npy", *sets)
        assert done.returncode == 1 and "each query's vector is in the gallery" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2
    other[[3, 7]] = rows[[0, 5]]
    np.save(tmp_path / "b.npy", other)
    done = run(tmp_path, "-m", f"{tmp_path}/a.npy,{tmp_path}/b.npy", *sets)
    assert done.returncode == 0, done.stderr
    assert "new: 2 queries have the very vector of another image" in done.stdout


def test_images_that_are_there_twice_are_counted_and_stay(tmp_path):
    folder = make_set(tmp_path / "set")
    assert not open_search(folder).remarks
    shutil.copy(folder / "c2/0.jpg", folder / "c4/copy.jpg")
    protocol = open_search(folder)
    assert "2 of 25 images are the same as another one" in protocol.remarks[0]
    assert f"{folder}/c2/0.jpg is {folder}/c4/copy.jpg" in protocol.remarks[0]
    assert protocol.search.relevance.ignored is None
    rows = np.random.default_rng(0).standard_normal((25, 8)).astype(np.float32)
    np.save(tmp_path / "m.npy", rows)
    done = run(tmp_path, "-m", tmp_path / "m.npy", "--data", folder, "--leave-one-out")
    assert done.returncode == 0 and protocol.remarks[0] in done.stdout, done.stderr


def test_a_picture_that_is_everywhere_takes_no_memory(tmp_path, monkeypatch):
    """Placeholders: all of them are of all queries."""
    monkeypatch.setattr(overlap, "_MOST", 1000)
    for name, number in (("queries", 40), ("gallery", 60)):
        for k in range(number):
            (tmp_path / name / f"c{k % 2}").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / f"c{k % 2}/{k}.jpg").write_bytes(jpeg(0, 0, 16))
    with pytest.raises(BctError, match=r"40 images of .*queries are one and the same picture"):
        open_search(tmp_path / "queries", tmp_path / "gallery")


@pytest.mark.parametrize("name", ["/", "..", ".", "a/.."])
def test_results_without_a_name(tmp_path, name):
    folder = make_set(tmp_path / "set", range(2), range(2))
    np.save(tmp_path / "m.npy", np.random.default_rng(0).standard_normal((4, 8)))
    line = ("-o", tmp_path / "out", "--name", name, "-m", tmp_path / "m.npy")
    done = run_script("eval/retrieval.py", *line, "--data", folder, "--leave-one-out")
    assert done.returncode == 1 and "is no name" in done.stderr, done.stderr


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_equal_rows_are_found_bit_by_bit(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 300, 5)).astype(dtype)
    b[17], b[200], a[3], b[4] = a[250], a[1], 0, 0
    assert np.flatnonzero(with_a_twin(a, b)).tolist() == [1, 250]  # zeros are no vector
    assert with_a_twin(a, a).sum() == 299


def test_queries_of_one_class_alone_are_left_out_and_counted(tmp_path):
    """The gallery has two classes; leave-one-out among them has wrong items to offer, one class
    has not."""
    folder = make_set(tmp_path / "two", range(2), range(3))
    rows = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    np.save(tmp_path / "m.npy", rows)
    done = run(tmp_path, "-m", tmp_path / "m.npy", "--data", folder, "--leave-one-out")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "c1")
    np.save(tmp_path / "m.npy", rows[:3])
    done = run(tmp_path, "-m", tmp_path / "m.npy", "--data", folder, "--leave-one-out")
    assert done.returncode == 1 and "no item can be wrong" in done.stderr, done.stderr
    queries = make_set(tmp_path / "queries", range(2), range(5, 7))
    np.save(tmp_path / "q.npy", np.random.default_rng(1).standard_normal((4, 8)))
    pair = f"{tmp_path}/q.npy,{tmp_path}/m.npy"
    done = run(tmp_path, "-m", pair, "--data", queries, "--gallery", folder)
    assert done.returncode == 1 and "no item can be wrong" in done.stderr, done.stderr
