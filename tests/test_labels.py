"""Labels: 0 ... C-1, each with an image; whatever else they are is refused in bounded memory."""

import re
import resource
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pictures import jpeg
from support.script import run_script

from bct.data.labels import check_labels, label_faults
from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header
from bct.data.sets import RecordSet, image_count, open_images
from bct.errors import BctError
from tools.split_dataset import split_by_data


def check(labels):
    return check_labels(np.array(labels), "a.rec", lambda k: f"image {k}")


@settings(max_examples=200)
@given(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 1.5, np.nan, np.inf, 2e9]), min_size=1))
def test_the_rule(labels):
    good = set(labels) == set(range(len(set(labels))))
    for dtype in (np.float32, np.float64):
        if good:
            assert check(np.array(labels, dtype)) == len(set(labels))
        else:
            with pytest.raises(BctError) as info:
                check(np.array(labels, dtype))
            assert len(str(info.value).splitlines()) == 2


def test_what_is_wrong_is_said():
    faults = label_faults(np.array([0, -1, 5, 1.5, 2], np.float32))
    assert faults.strange.tolist() == [1, 3]
    assert faults[1:] == (6, 2, 3, 1)
    assert label_faults(np.array([np.nan]))[1:] == (0, -1, 0, 0)
    with pytest.raises(BctError, match="no image of class 0, but image 0 is of class 1"):
        check([1, 1])


def test_one_damaged_label_asks_for_no_memory():
    labels = np.zeros(24, np.float32)
    labels[7] = 2e9
    tracemalloc.start()
    with pytest.raises(BctError, match="image 7 is of class 2000000000"):
        check(labels)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def write(path, labels, header=None, array=False):
    with RecordWriter(path) as writer:
        if header is not None:
            writer.write(0, Header(header), b"")
        for key, label in enumerate(labels, 1):
            data = jpeg(0, key, 16) if label is not None else b""
            label = 0 if label is None else label
            writer.write(key, Header([label, 0] if array else float(label), key), data)
    return path


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("script", ["train_old", "split", "check_rec", "report"])
@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([0, -1, 1, 1], "key 2"),
        ([0, 1.5, 1, 1], "label 1.5"),
        ([0, 0, 1, 2_000_000_000], "key 4"),
        ([1, 1, 2, 2], r"no image of class 0|e\.g\. 0"),
        ([0, float("nan"), 1, 1], "label nan"),
    ],
)
def test_every_tool_refuses_the_same(tmp_path, weights, labels, word, script, array):
    if array and script != "train_old":
        return  # reading is tried once
    rec, out = write(tmp_path / "a.rec", labels, array=array), tmp_path / "out"
    config = tmp_path / "tiny.py"
    config.write_text("from easydict import EasyDict\nconfig = EasyDict(network='demo_w32')\n")
    call = {
        "train_old": ["train_old.py", config, f"rec={rec}", f"output={out}", "num_epoch=1",
                      "batch_size=4", "embedding_size=16", "amp=off"],
        "split": ["tools/split_dataset.py", rec, "--out", out],
        "check_rec": ["tools/check_rec.py", rec, "-j", 1],
        "report": ["eval/report.py", "--images", rec, "-m", weights[1], "-m_old", weights[0],
                   "-net", "demo_w16", "-old_net", "demo_w16", "-o", out],
    }[script]  # fmt: skip
    done = run_script(*call)
    said = done.stdout if script == "check_rec" else done.stderr
    assert done.returncode == 1 and re.search(word, said), done.stdout + done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    if script != "check_rec":
        assert len(done.stderr.strip().splitlines()) == 2, done.stderr


@pytest.mark.parametrize(
    ("header", "word"),
    [([5, 3], "header says 3 classes, its labels 2"), ([5, 8], "says 3 classes, its labels 2"),
     ([5, 7], None), ([5, 2], None)],
)  # fmt: skip
def test_a_header_has_to_agree_with_the_labels(tmp_path, header, word):
    faces = RecordSet(write(tmp_path / "a.rec", [0, 0, 1, 1], header))
    if word is None:
        assert faces.num_classes == 2
        return
    with pytest.raises(BctError, match=word) as info:
        faces.num_classes  # noqa: B018
    assert "tools/check_rec.py" in info.value.do


def test_records_without_data_are_no_images(tmp_path, capsys):
    faces = open_images(write(tmp_path / "a.rec", [0, 0, 1, 1, None, None]))
    assert len(faces) == 4 and faces.num_classes == 2 and faces.keys.tolist() == [1, 2, 3, 4]
    assert "2 records without data are no images, e.g. key 5" in capsys.readouterr().out
    with pytest.raises(BctError, match="holds no image"):
        open_images(write(tmp_path / "b.rec", [None, None]))
    done = run_script("tools/check_rec.py", tmp_path / "a.rec", "-j", 1)
    assert done.returncode == 1 and "2 records without data" in done.stdout
    assert "images         4\n" in done.stdout


@pytest.mark.parametrize("images", [3, 2**24 - 2, 2**24 + 1, 2**25 + 3, 42_474_557])
def test_headers_hold_float32(images):
    """Counts beyond 2^24 are rounded there: the images decide."""
    assert image_count(float(np.float32(images + 1)), lambda key: key <= images) == images


def test_every_class_has_an_image_in_both_parts():
    labels = np.repeat(np.arange(4), [1, 2, 3, 10])
    for percent in range(1, 100):
        for _, part in split_by_data(labels, percent):
            assert np.unique(part).tolist() == [0, 1, 2, 3]
    (_, old), (_, new) = split_by_data(labels, 90)
    assert np.bincount(old).tolist() == [1, 2, 3, 9] and np.bincount(new).tolist() == [1, 1, 1, 1]


def test_memory_of_a_reader_is_that_of_its_headers(tmp_path):
    rec = write(tmp_path / "a.rec", [0, 2_000_000_000] * 12)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BctError):
        RecordSet(rec).labels  # noqa: B018
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
