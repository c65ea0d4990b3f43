"""Public reports about data sets, as small inputs: the right value, or two lines why not."""

import shutil

import numpy as np
import pytest
from support.script import run_script

from bct.data.sets import RecordSet, open_images
from bct.errors import BctError
from bct.files import read_json
from tools.ijbc.protocol import read_protocol


@pytest.fixture
def cases(shared):
    return shared / "cases"


def two_lines(done):
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    return done.stderr


def train(conf, rec, out, *more):
    return run_script("train_old.py", conf, f"rec={rec}", f"output={out}", "amp=off", *more)


def test_identity_records_of_an_unsorted_list(cases, tmp_path):
    """Case 1: 6 labels, more identity records. Both counts are named, nothing is written."""
    case = cases / "1"
    said = two_lines(train(case / "conf.py", case / "train.rec", tmp_path / "out"))
    assert "its labels 6" in said and "its header says" in said and "tools/check_rec.py" in said
    assert not (tmp_path / "out").exists()
    said = two_lines(
        run_script("tools/split_dataset.py", case / "train.rec", "--out", tmp_path / "s")
    )
    assert "its labels 6" in said and not list(tmp_path.glob("s/*"))


def test_identity_records_without_a_header(cases, tmp_path):
    """Case 2: 36 images of 6 classes, and 6 records without data, which are no images."""
    case = cases / "2"
    faces = open_images(case / "train.rec")
    assert (len(faces), faces.num_classes) == (36, 6)
    done = train(case / "conf.py", case / "train.rec", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "6 records without data are no images" in done.stdout
    assert read_json(tmp_path / "out/model.json")["num_classes"] == 6
    done = run_script("tools/split_dataset.py", case / "train.rec", "--out", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    parts = [RecordSet(tmp_path / f"s/train_part_{p}_class.rec") for p in (30, 70)]
    assert [part.num_classes for part in parts] == [2, 4] and sum(map(len, parts)) == 36
    assert all(len(part.payload(k)[0]) > 0 for part in parts for k in range(len(part)))


def test_byte_order_marks(cases, tmp_path):
    """Case 10: the list and the meta file read as without the mark."""
    case = tmp_path / "10"
    shutil.copytree(cases / "10", case)
    text = (case / "list.txt").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    marked = open_images(case / "list.txt")
    (case / "plain.txt").write_bytes(text[3:])
    plain = open_images(case / "plain.txt")
    assert marked.names.tolist() == plain.names.tolist() and len(marked) == 12
    assert marked.labels.tolist() == plain.labels.tolist() and marked.class_names == ["a", "b", "c"]
    meta = case / "ij/IJBC/meta"
    assert (meta / "ijbc_name_5pts_score.txt").read_bytes().startswith(b"\xef\xbb\xbf")
    one = read_protocol(case / "ij", identification=False)
    for file in meta.iterdir():  # on every file, or on none
        file.chmod(0o644)
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    every = read_protocol(case / "ij", identification=False)
    assert one.images.names[0] == every.images.names[0] == "0.jpg"
    assert np.array_equal(one.pairs[0], every.pairs[0])


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe"], ids=["UTF-8", "UTF-16"])
def test_byte_order_marks_of_each_meta_file(ijb, mark):
    """Its brothers: the pairs, and the tables of 1:N, whose first row has the columns' names."""
    plain = read_protocol(ijb.parent)
    for file in (ijb / "meta").iterdir():
        text = file.read_bytes()
        file.write_bytes(mark + text)
        if mark == b"\xff\xfe":
            with pytest.raises(BctError, match=f"{file.name} is UTF-16 text"):
                read_protocol(ijb.parent)
        else:
            marked = read_protocol(ijb.parent)
            assert np.array_equal(marked.pairs, plain.pairs)
            assert np.array_equal(marked.subjects, plain.subjects)
        file.write_bytes(text)


@pytest.mark.parametrize(
    ("name", "word"), [("neg", "has label -1, not 0, 1, 2"), ("sparse", "no image of class 1, but")]
)
def test_labels_that_are_not_counted(cases, tmp_path, name, word):
    """Case 12: split and training refuse alike, before anything is written."""
    case = cases / "12"
    rec = case / f"{name}.rec"
    for said in (
        two_lines(run_script("tools/split_dataset.py", rec, "--out", tmp_path / "s")),
        two_lines(train(case / "conf.py", rec, tmp_path / "out")),
    ):
        assert word in said and "num_classes" not in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "word"), [("2e9", "class 2000000000"), ("3e8", "class 300000000"), ("-1", "label -1")]
)
def test_labels_beyond_reason(cases, tmp_path, name, word):
    """r_13: one damaged label among 24 is named, and no table of its size is made."""
    case = cases / "r_13_labels_beyond_reason"
    rec = case / name / "train.rec"
    with pytest.raises(BctError, match=word):
        open_images(rec).labels  # noqa: B018
    said = two_lines(
        run_script("tools/split_dataset.py", rec, "--out", tmp_path / "s")
    ) + two_lines(train(case / "c.py", rec, tmp_path / "out", "num_epoch=1"))
    assert said.count(word) == 2 and "train.rec, key " in said
    assert not (tmp_path / "out").exists()
