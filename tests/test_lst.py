"""Lists of im2rec and of insightface's face2rec2 as data."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.pictures import jpeg
from support.script import run_script

from bct.config import load_config
from bct.data.lst_files import open_lst, read_lst
from bct.data.sets import open_images
from bct.errors import BctError
from bct.scenarios import shard_file


def im2rec_line(index, labels, path):
    """As MXNet's im2rec writes it: every label "%f"."""
    return "".join([f"{index}\t", *(f"{float(v):f}\t" for v in labels), f"{path}\n"])


@pytest.fixture
def images(tmp_path):
    """root/ with 3 classes of 2 images; (index, label, path) in another order, as im2rec mixes."""
    rows = []
    for label, name in enumerate(("anna", "b o", "carl")):
        for k in range(2):
            file = tmp_path / "faces" / name / f"{k} x.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(label, k))
            rows.append((len(rows), label, f"{name}/{k} x.jpg"))
    return tmp_path / "faces", [rows[k] for k in (3, 0, 5, 1, 4, 2)]


def refused(text, path, word):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BctError) as info:
        open_images(path)
    assert len(str(info.value).splitlines()) == 2 and str(info.value).isascii()
    assert word in str(info.value), str(info.value)


def test_im2recs_list(images):
    root, rows = images
    (root / "x.lst").write_text("".join(im2rec_line(i, [label], p) for i, label, p in rows))
    found = open_images(root / "x.lst")
    assert found.labels.tolist() == [label for _, label, _ in rows]
    assert found.labels.dtype == np.int64 and found.num_classes == 3
    assert found.class_names == ["anna", "b o", "carl"]
    for k, (_, label, name) in enumerate(rows):
        data, its = found.payload(k)
        assert data == (root / name).read_bytes() and its == label
    assert read_lst(root / "x.lst").keys.tolist() == [i for i, _, _ in rows]


def test_face2rec2s_list(images):
    root, rows = images
    box = "\t".join("1234")
    points = "\t".join(str(v) for v in range(10))
    ends = ["", f"\t{box}", f"\t{box}\t{points}"]
    lines = [f"1\t{root / p}\t{label}{ends[k % 3]}" for k, (_, label, p) in enumerate(rows)]
    (root / "y.lst").write_text(f"# root: {root}\n" + "\r\n".join(lines) + "\n\n")
    found = open_images(root / "y.lst")
    assert found.labels.tolist() == [label for _, label, _ in rows]
    assert [os.fsdecode(name) for name in found.names] == [path for _, _, path in rows]
    assert found.payload(3)[0] == (root / rows[3][2]).read_bytes()
    refused("\n".join(lines), root / "z.lst", "# root: <folder>")


def test_where_the_images_are(images, tmp_path):
    root, rows = images
    text = "".join(im2rec_line(i, [label], p) for i, label, p in rows)
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "x.lst"
    file.write_text(text)
    with pytest.raises(BctError, match="# root: <folder>"):
        open_images(file)
    assert open_lst(file, root).payload(0)[0] == (root / rows[0][2]).read_bytes()
    file.write_text("# root: ../faces\n" + text)
    assert open_images(file).payload(0)[0] == (root / rows[0][2]).read_bytes()
    file.write_text("# root: elsewhere\n" + text)
    with pytest.raises(BctError, match="elsewhere is not there"):
        open_images(file)


def test_bad_lists_are_refused(images):
    root, rows = images
    path, good = root / "bad.lst", im2rec_line(0, [0], rows[0][2])
    name = rows[0][2]
    for text, word in (
        ("", "names no image"),
        ("\n\n", "names no image"),
        (good + "1\t0.000000\n", "line 2 is not <index>"),
        (good + f"x\t0\t{name}\n", "line 2 is not <index>"),
        (good + f"1\tnan\t{name}\n", "line 2 is not <index>"),
        (good + f"1\t{'9' * 400}e999\t{name}\n", "line 2 is not <index>"),
        (good + im2rec_line(1, [0, 3.5], name), "give each image one label"),
        (im2rec_line(1, [0, 3.5], name), "give each image one label"),
        (good + im2rec_line(1, [0.5], name), "has label 0.5, not 0, 1, 2"),
        (good + im2rec_line(1, [-1], name), "has label -1, not 0, 1, 2"),
        (good + im2rec_line(1, [7], name), "no image of class 1"),
        (good + im2rec_line(1, [1e30], name), "not 0, 1, 2"),
        (good + im2rec_line(1, [1], "../faces/x"), "does not lie below"),
        (good + im2rec_line(1, [1], "/etc/passwd"), "does not lie below"),
        (good + "1\t1\t\n", "line 2 is not of an image"),
        (good + "1\t1\ta\0b\n", "line 2 is not of an image"),
        (f"1\t{name}\t0\nrest\n", "line 2 is not <1>"),
        (f"1\t{name}\t0\t5\n", "line 1 is not <1>"),
        (f"2\t{name}\t0\n", "line 1 is not <1>"),
        (f"0\t{name}\t0\n", "line 1 is not of an aligned face"),
        ("\ufeff".encode("utf-16"), "UTF-16"),
        (good.encode("utf-16"), "UTF-16"),
    ):
        refused(text, path, word)
    path.write_bytes(b"\xef\xbb\xbf" + good.encode())  # Windows' mark
    assert len(open_images(path)) == 1


def test_names_are_bytes(images):
    root, _ = images
    (root / os.fsdecode(b"\xff \xe9.jpg")).write_bytes(jpeg(0, 0))
    (root / "x.lst").write_bytes(b"0\t0.000000\t\xff \xe9.jpg\n")
    assert open_images(root / "x.lst").payload(0)[0] == jpeg(0, 0)


def test_a_list_is_split_and_its_parts_are_found(images, tmp_path):
    root, rows = images
    (root / "x.lst").write_text("".join(im2rec_line(i, [label], p) for i, label, p in rows))
    done = run_script("tools/split_dataset.py", root / "x.lst", "--ratio", 34, "--by", "class")
    assert done.returncode == 0, done.stderr
    old = open_images(root / "x_part_34_class.txt")
    assert len(old) == 2 and old.class_names == ["anna"]
    assert shard_file(root / "x.lst", "class66") == root / "x_part_66_class.txt"
    assert len(open_images(shard_file(root / "x.lst", "class66"))) == 4
    out = tmp_path / "out"
    done = run_script("tools/split_dataset.py", root / "x.lst", "--out", out, "--by", "data")
    assert done.returncode == 0, done.stderr
    assert sorted(f.name for f in out.glob("*.txt")) == [
        "x.txt", "x_part_30_data.txt", "x_part_70_data.txt"]  # fmt: skip
    cfg = load_config(write_config(tmp_path, root / "x.lst"), ["shard=class66"])
    assert Path(cfg.rec) == root / "x_part_66_class.txt"


def write_config(folder, rec):
    file = folder / "job.py"
    file.write_text(f"config = dict(network='demo_w16', embedding_size=8, rec={str(rec)!r})\n")
    return file


def test_training_takes_one(images, tmp_path):
    root, rows = images
    (root / "x.lst").write_text("".join(im2rec_line(i, [label], p) for i, label, p in rows))
    more = ("batch_size=3", "num_epoch=1", "num_workers=0", "amp=off", f"output={tmp_path / 'run'}")
    done = run_script("train_old.py", write_config(tmp_path, root / "x.lst"), *more)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.pt").is_file()
