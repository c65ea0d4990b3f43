"""Training sets as AdvBCT's world lists them: GLDv2-clean, Market-1501, lists of records."""

import os
import sys

import numpy as np
import pytest
from PIL import Image
from support.pictures import picture, write_faces

from bct.data.image_lists import Listed, list_text, read_list
from bct.data.sets import RecordList, RecordSet, open_images
from bct.data.sources import open_sources
from bct.errors import BctError
from bct.scenarios import shard_file, shard_stem
from tools import split_dataset


def refused(word, path):
    with pytest.raises(BctError) as info:
        open_images(path)
    assert len(str(info.value).splitlines()) == 2, str(info.value)
    assert word in str(info.value), str(info.value)


def save(path, identity=0, variant=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(identity, variant, 8)).save(path, quality=95)


@pytest.fixture
def gldv2(tmp_path):
    """train/a/b/c and train_clean.csv of 3 landmarks, which the csv does not have in order."""
    rows = {"70": ["abc1", "abd2"], "5": ["0f31"], "123": ["abe3", "fff4", "0004"]}
    for k, images in enumerate(rows.values()):
        for name in images:
            save(tmp_path / "train" / name[0] / name[1] / name[2] / f"{name}.jpg", k, int(name[-1]))
    lines = ["landmark_id,images", *(f"{k},{' '.join(v)}" for k, v in rows.items())]
    (tmp_path / "train_clean.csv").write_text("\r\n".join(lines) + "\r\n")
    return tmp_path


def test_gldv2_clean(gldv2):
    found = open_images(gldv2 / "train_clean.csv")
    assert found.class_names == ["5", "70", "123"] and found.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert found.names[:2].tolist() == [b"train/0/f/3/0f31.jpg", b"train/a/b/c/abc1.jpg"]
    assert np.array_equal(found.image(0), np.asarray(Image.open(gldv2 / "train/0/f/3/0f31.jpg")))
    assert open_images(gldv2).fingerprint == found.fingerprint  # of the folder, too
    assert shard_file(gldv2 / "train_clean.csv", "class30") == (
        gldv2 / "train_clean_part_30_class.txt"
    )
    lines = [
        f"{name.decode()} {label}" for name, label in zip(found.names, found.labels, strict=True)
    ]
    (gldv2 / "label_3.txt").write_text("\n".join(lines))
    assert open_images(gldv2 / "label_3.txt").fingerprint == found.fingerprint
    (gldv2 / "train/0/f/3/0f31.jpg").unlink()
    with pytest.raises(BctError, match=r"0f31.jpg can't be read \(No such file"):
        _ = open_images(gldv2).fingerprint


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "line 1 is not landmark_id,images"),
        ("id,url,landmark_id\nabc,http,1\n", "line 1 is not landmark_id,images"),
        ("landmark_id,images\n", "names no image"),
        ("landmark_id,images\n1,abc\n2,\n", "line 3 is not <landmark_id>,<image>"),
        ("landmark_id,images\n1,abc\n\nx,abd\n", "line 4 is not <landmark_id>,<image>"),
        ("landmark_id,images\n-1,abc\n", "line 2 is not <landmark_id>,<image>"),
        ("landmark_id,images\n1,ab\n", "line 2 is not <landmark_id>,<image>"),
        ("landmark_id,images\n1,../../x\n", "line 2 is not <landmark_id>,<image>"),
        ("landmark_id,images\n1,abc/def\n", "line 2 is not <landmark_id>,<image>"),
        ("landmark_id,images\n1,abc\n1,abd\n", "it occurs twice"),
        ("landmark_id,images\n1,abc\n2,abd abc\n", "names the image abc twice"),
    ],
)
def test_csvs_that_are_not(tmp_path, text, word):
    (tmp_path / "train_clean.csv").write_text(text)
    refused(word, tmp_path / "train_clean.csv")


@pytest.fixture
def market(tmp_path):
    folder = tmp_path / "Market-1501" / "bounding_box_train"
    names = ["0007_c1s1_000001_01", "0007_c2s1_000002_01", "0002_c6s3_000003_02",
             "1500_c3s1_000004_01", "-1_c1s1_000005_01", "0002_c1s1_000006_01"]  # fmt: skip
    for k, name in enumerate(names):
        save(folder / f"{name}.jpg", k)
    (folder / "Thumbs.db").write_bytes(b"x")
    return folder


def test_market(market, capsys):
    found = open_images(market)
    assert found.class_names == ["0002", "0007", "1500"] and found.labels.tolist() == [
        0,
        0,
        1,
        1,
        2,
    ]
    assert b"bounding_box_train/-1_c1s1_000005_01.jpg" not in found.names
    assert "1 images show nobody" in capsys.readouterr().out
    assert open_images(market.parent).fingerprint == found.fingerprint
    assert shard_stem(market) == market and shard_stem(market.parent) == market.parent / "train"
    save(market / "somebody.jpg")
    refused("1 of 7 names are none of Market-1501", market)


def test_parts_of_market_are_beside_it(market, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["split_dataset.py", str(market), "--by", "class"])
    split_dataset.main()
    part = shard_file(market, "class30")
    assert part == market.with_name("bounding_box_train_part_30_class.txt")
    assert open_images(part).class_names == ["0002"]
    assert open_images(shard_file(market, "class70")).class_names == ["0007", "1500"]


def test_market_without_people(tmp_path):
    (tmp_path / "bounding_box_train").mkdir()
    refused("has no image", tmp_path / "bounding_box_train")
    save(tmp_path / "bounding_box_train/-1_c1s1_000005_01.jpg")
    refused("has nobody to learn from", tmp_path)


def test_lists_with_cameras(market):
    """AdvBCT's imlist_label.txt: <path> <label> <camera> 1."""
    lines = ["bounding_box_train/0007_c1s1_000001_01.jpg 1 0 1",
             "bounding_box_train/0002_c6s3_000003_02.jpg 0 5 1",
             "bounding_box_train/0007_c2s1_000002_01.jpg 1 1 1"]  # fmt: skip
    path = market.parent / "imlist_label.txt"
    path.write_text("\n".join(lines) + "\n")
    found = open_images(path)
    assert found.labels.tolist() == [1, 0, 1] and found.image(0).shape == (8, 8, 3)
    assert found.names[1] == b"bounding_box_train/0002_c6s3_000003_02.jpg"
    path.write_text("\n".join(lines[:1] + lines[2:]) + "\n")
    refused("has no image of class 0", path)
    path.write_text(lines[0].replace(" 1 0 1", " 1 1") + "\n" + "\n".join(lines[1:]) + "\n")
    refused("has no image of class 0", path)  # a camera is missing
    path.write_text(lines[0].replace("bounding", "../bounding") + "\n")
    refused("line 1 is not a file below the list's root", path)


def test_names_with_numbers_at_their_end_are_no_cameras(tmp_path):
    """As long as any label is not 1."""
    for k, name in enumerate(("x 1 2", "x 0 2")):
        save(tmp_path / f"{name}.jpg", k)
        os.rename(tmp_path / f"{name}.jpg", tmp_path / name)
    (tmp_path / "l.txt").write_text("x 1 2 1\nx 0 2 0\n")
    assert open_images(tmp_path / "l.txt").names.tolist() == [b"x 1 2", b"x 0 2"]


@pytest.fixture
def records(tmp_path):
    write_faces(tmp_path / "train.rec", [2, 3, 1, 2])
    return RecordSet(tmp_path / "train.rec")


@pytest.mark.parametrize("place", ["train.rec is beside it", "a root is said"])
def test_lists_of_records(records, tmp_path, place):
    """MS1M's imlist_label.txt: the labels are the list's, not the records'."""
    text, path = "7 1\n0 0\n3 1\n", tmp_path / "imlist_label.txt"
    if place == "a root is said":
        path = tmp_path / "lists" / "some.txt"
        path.parent.mkdir()
        text = "# root: ../train.rec\n" + text
    path.write_text(text)
    found = open_images(path)
    assert isinstance(found, RecordList) and len(found) == 3 and found.num_classes == 2
    assert found.labels.tolist() == [1, 0, 1] and records.labels[[7, 0, 3]].tolist() == [3, 0, 1]
    out = np.empty((112, 112, 3), np.uint8)
    for k, origin in enumerate((7, 0, 3)):
        assert found.load(k, out) == found.labels[k]
        assert np.array_equal(out, records.image(origin)) and np.array_equal(found.image(k), out)
        assert bytes(found.payload(k)[0]) == bytes(records.payload(origin)[0])
        assert found.payload(k)[1] == found.labels[k]
        assert found.describe(k) == records.describe(origin)
    source = open_sources([path], lambda path: None)
    assert source.labelled and source.name(0) == b"7"
    before = found.fingerprint
    path.write_text(text.replace("7 1", "6 1"))
    assert open_images(path).fingerprint != before
    path.write_text(text.replace("7 1", "7 2"))
    assert open_images(path).fingerprint != before


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("0 0\n8 1\n", "names an image '8'"),
        ("0 0\n1 2\n", "no image of class 1, but"),
        ("0 0\nx.jpg 1\n", "neither in"),  # not all of them are numbers: files
        ("# root: train.rec\n0 0\nx.jpg 1\n", "names an image 'x.jpg'"),
        ("# root: other.rec\n0 0\n", "other.rec is not there"),
        ("", "names no image"),
    ],
)
def test_lists_of_records_that_are_not(records, tmp_path, text, word):
    (tmp_path / "l.txt").write_text(text)
    refused(word, tmp_path / "l.txt")


def test_lists_of_records_are_written_as_they_are_read(records, tmp_path):
    path = tmp_path / "l.txt"
    path.write_bytes(list_text(path, records.path, [b"4", b"0"], np.array([0, 1])))
    assert read_list(path)[:2] == Listed(b"train.rec", [b"4", b"0"], None)[:2]
    assert open_images(path).index.tolist() == [4, 0]


def test_real_names_of_market_make_its_classes(shared, tmp_path):
    """All 12,936 names, on empty files: 751 people, as published."""
    folder = tmp_path / "bounding_box_train"
    folder.mkdir()
    rows = (shared / "data/reid/market1501_train.csv").read_text().split()
    for row in rows:
        (folder / os.path.basename(row.split(",")[1])).touch()
    found = open_images(folder)
    assert (len(found), found.num_classes) == (12936, 751)
    assert sorted({int(row.split(",")[0]) for row in rows}) == [int(n) for n in found.class_names]
