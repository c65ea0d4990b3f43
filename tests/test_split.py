"""The split rule, on golden counts and on real faces; parts of image sets are lists."""

import sys

import numpy as np
import pytest
from PIL import Image
from support.cifar import write_cifar
from support.pictures import picture, write_faces
from support.script import run_script

from bct.data.label_map import new_to_old
from bct.data.sets import FolderSet, RecordSet, open_images
from bct.errors import BctError
from bct.files import read_json
from bct.scenarios import new_shard, shard_file
from tools import split_dataset
from tools.split_dataset import split_by_class, split_by_data, write_part

# worked out with the reference (spec of the MixBCT splitter)
COUNTS = [1, 2, 3, 4, 5, 10, 15, 25, 1, 35, 7, 20, 45, 1]
DATA30 = [1, 1, 1, 1, 2, 3, 4, 8, 1, 10, 2, 6, 14, 1]
DATA70 = [1, 1, 2, 3, 3, 7, 11, 17, 1, 25, 5, 14, 31, 1]
LABELS = np.repeat(np.arange(len(COUNTS)), COUNTS)


@pytest.fixture
def split(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["split_dataset.py", *map(str, arguments)])
        split_dataset.main()

    return call


def test_golden_counts():
    (old, old_labels), (new, new_labels) = split_by_data(LABELS, 30)
    assert np.bincount(old_labels).tolist() == DATA30
    assert np.bincount(new_labels).tolist() == DATA70
    assert (LABELS[old] == old_labels).all() and (LABELS[new] == new_labels).all()
    (old, old_labels), (new, new_labels) = split_by_class(LABELS, 30)
    assert np.unique(old_labels).tolist() == list(range(4))  # round(4.2)
    assert np.unique(new_labels).tolist() == list(range(10))
    assert len(old) + len(new) == len(LABELS)


def test_the_first_images_of_an_identity_are_the_old_ones_in_any_file_order():
    order = np.random.default_rng(0).permutation(len(LABELS))
    shuffled = LABELS[order]
    (old, _), (new, _) = split_by_data(shuffled, 30)
    for identity, count in enumerate(DATA30):
        places = np.flatnonzero(shuffled == identity)
        assert set(places[:count]) <= set(old.tolist())
    assert np.bincount(shuffled[new]).tolist() == DATA70


def test_ms1mv3_sizes():
    """93,431 identities: 28,029 old and 65,402 new, as published."""
    labels = np.arange(93431)
    (_, old), (_, new) = split_by_class(labels, 30)
    assert (old.max() + 1, new.max() + 1) == (28029, 65402)


def test_parts_are_copies_with_new_keys_and_labels(tmp_path):
    source = RecordSet(write_faces(tmp_path / "train.rec", COUNTS[:6]))
    part = split_by_class(source.labels, 30)[1]
    write_part(source, part, tmp_path / "part.rec")
    copy = RecordSet(tmp_path / "part.rec")
    assert copy.num_classes == 4 and len(copy) == len(part[0])
    assert copy.reader.read(0)[0].label.tolist() == [len(copy) + 1, 4]
    for i, origin in enumerate(part[0]):
        data, label = copy.payload(i)
        assert bytes(data) == bytes(source.payload(int(origin))[0])
        assert label == source.labels[origin] - 2
        assert copy.reader.read(i + 1)[0].id == i + 1


def test_command_line_names_reuse_and_refusal(tmp_path, split, capsys):
    write_faces(tmp_path / "train.rec", [4, 4, 4, 4])
    split(tmp_path, "--ratio", 25)
    names = {p.name for p in tmp_path.glob("*.rec")}
    assert names == {"train.rec"} | {
        f"train_part_{p}_{k}.rec" for p in (25, 75) for k in ("class", "data")
    }
    capsys.readouterr()
    split(tmp_path, "--ratio", 25)
    assert capsys.readouterr().out.count("reusing it") == 4
    write_faces(tmp_path / "train.rec", [4, 4, 4, 5])
    before = (tmp_path / "train_part_25_class.rec").read_bytes()
    again = run_script("tools/split_dataset.py", tmp_path, "--ratio", 25)
    assert again.returncode == 1 and len(again.stderr.strip().splitlines()) == 2
    assert (tmp_path / "train_part_25_class.rec").read_bytes() == before


def test_a_part_may_not_be_empty():
    with pytest.raises(BctError, match="leaves a part empty"):
        split_by_class(np.array([0, 0, 1]), 5)


def test_lfw(shared):
    faces = RecordSet(shared / "data/lfw/train.rec")
    (old, old_labels), (new, new_labels) = split_by_class(faces.labels, 30)
    assert (len(old), old_labels.max() + 1, len(new), new_labels.max() + 1) == (
        1777,
        355,
        4894,
        829,
    )


@pytest.fixture
def folder(tmp_path):
    """Classes 0 to 11 of ml-fct's kind, of 4 images each."""
    for label in range(12):
        (tmp_path / "set/train" / str(label)).mkdir(parents=True)
        for k in range(4):
            image = Image.fromarray(picture(label, k, 8))
            image.save(tmp_path / "set/train" / str(label) / f"{k}.png")
    return tmp_path / "set"


def content(faces):
    """{bytes of an image: name of its class}"""
    names = faces.class_names
    return {faces.image(k).tobytes(): names[faces.labels[k]] for k in range(len(faces))}


def test_parts_of_a_folder_by_classes(folder, split):
    split(folder, "--ratio", 25, "--by", "class")
    whole, parts = open_images(folder), [folder / f"train_part_{p}_class.txt" for p in (25, 75)]
    old, new = map(open_images, parts)
    assert isinstance(whole, FolderSet) and whole.class_names[:4] == ["0", "1", "10", "11"]
    assert old.class_names == ["0", "1", "10"] and old.num_classes == 3 and len(old) == 12
    assert new.class_names[:2] == ["11", "2"] and np.unique(new.labels).tolist() == [*range(9)]
    assert content(old) | content(new) == content(whole)
    assert new_to_old(whole.class_names, old.class_names).tolist() == [0, 1, 2] + [-1] * 9
    assert read_json(parts[0].with_suffix(".json")) == {
        "source": whole.fingerprint, "root": "train", "class_names": ["0", "1", "10"],
        "images": 12, "classes": 3,
    }  # fmt: skip
    assert shard_file(folder, "class25") == parts[0]
    before = content(old), old.fingerprint
    again = open_images(folder.rename(folder.parent / "moved") / "train_part_25_class.txt")
    assert (content(again), again.fingerprint) == before


def test_orders_and_numbers_of_classes(folder, split, tmp_path):
    for order, want in (("numeric", "0 1 2 3 4"), ("lexicographic", "0 1 10 11 2")):
        out = tmp_path / order
        split(folder, "--classes", 5, "--order", order, "--out", out)
        old, new = open_images(out / "train_part_42_class.txt"), out / "train_part_58_class.txt"
        assert old.class_names == want.split()
        assert content(old) | content(open_images(new)) == content(open_images(folder))
        assert content(open_images(out)) == content(open_images(folder))  # train.txt, the whole


def test_parts_by_images_follow_their_names_and_can_be_split_again(folder, split, tmp_path, capsys):
    lines = [f"{label}/{k}.png {label}" for k in (2, 0, 3, 1) for label in range(12)]
    (folder / "mine.txt").write_text("\n".join(lines))
    split(folder / "mine.txt", "--by", "data", "--ratio", 75)
    old, new = (folder / f"mine_part_{p}_data.txt" for p in (75, 25))
    assert {name[-5:] for name in open_images(old).names} == {b"0.png", b"1.png", b"2.png"}
    assert {name[-5:] for name in open_images(new).names} == {b"3.png"}
    assert open_images(new).class_names == [str(label) for label in range(12)]
    for _ in range(2):
        split(old, "--by", "class", "--ratio", 50)
    assert capsys.readouterr().out.count("reusing it") == 2
    first = shard_file(old, "class50")
    assert first.name == "mine_part_75_data_part_50_class.txt"
    rest = open_images(first.with_name("mine_part_75_data_part_50_class_rest.txt"))
    assert open_images(first).class_names + rest.class_names == open_images(old).class_names
    assert len(open_images(first)) == len(rest) == 18
    assert shard_file(first, "class50") == first and shard_file(first, "class100") == first
    assert shard_file(folder / "mine.txt", "data30") == folder / "mine_part_30_data.txt"
    with pytest.raises(BctError, match="was not made from"):
        split(old, "--by", "class", "--ratio", 50, "--order", "lexicographic")


def test_published_splits_of_cifar(tmp_path, split):
    source = write_cifar(tmp_path, 100)
    labels = [*range(6), *range(10, 50), *range(50, 54)]
    found = {}
    for name in split_dataset.PUBLISHED:
        split(source, "--split", name, "--out", tmp_path / name)
        found[name] = open_images(tmp_path / name / "train_part_50_class.txt")
        assert found[name].num_classes == 50 and len(found[name]) == 50
    whole = open_images(source)
    lexicographic = found["cifar100_first50_lex"]
    assert sorted(lexicographic.class_names) == [f"c{label:02}" for label in labels]
    assert lexicographic.class_names[:4] == ["c00", "c01", "c10", "c11"]  # their checkpoints' order
    assert found["cifar100_first50_num"].class_names == [f"c{k:02}" for k in range(50)]
    assert content(lexicographic).items() <= content(whole).items()
    everything = open_images(tmp_path / name / "train.txt")
    assert content(everything) == content(whole) and everything.labels.tolist() == [*range(100)]
    with pytest.raises(BctError, match="was not made from"):  # the two are never mixed
        split(source, "--by", "class", "--split", "cifar100_first50_lex", "--out", tmp_path / name)
    split(tmp_path / name / "train.txt", "--by", "class", "--split", name)  # the same from a list
    for label in range(100):
        (tmp_path / "png" / str(label)).mkdir(parents=True)
        Image.fromarray(picture(label, 0, 8)).save(tmp_path / "png" / str(label) / "0.png")
    split(tmp_path / "png", "--by", "class", "--split", "cifar100_first50_lex")
    numbered = open_images(tmp_path / "png/train_part_50_class.txt").class_names
    assert numbered == sorted(map(str, range(100)))[:50]
    assert sorted(map(int, numbered)) == labels


def test_halves_of_records_have_two_names(tmp_path, split):
    write_faces(tmp_path / "train.rec", [2, 2, 2, 2])
    split(tmp_path, "--ratio", 50)
    for kind in ("class", "data"):
        one, other = (tmp_path / f"train_part_50_{kind}{rest}.rec" for rest in ("", "_rest"))
        assert len(RecordSet(one)) == len(RecordSet(other)) == 4
        with pytest.raises(BctError, match="can't tell the halves"):
            new_shard(f"OP{kind}", f"x_{kind}50")
        assert new_shard(f"EX{kind}", f"x_{kind}50") == f"{kind}100"
    split(tmp_path, "--by", "class", "--classes", 1)
    assert RecordSet(tmp_path / "train_part_25_class.rec").num_classes == 1
    assert shard_file(tmp_path, "class25").suffix == ".rec"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--ratio", 1, "--by", "class"], "leaves a part empty"),
        (["--classes", 12, "--by", "class"], "leaves a part empty"),
        (["--classes", 5, "--by", "both"], "are about classes"),
        (["--order", "numeric", "--by", "data"], "are about classes"),
        (["--split", "cifar100_first50_lex", "--by", "class"], "has 12 classes"),
    ],
)
def test_splits_that_can_not_be(folder, split, arguments, word):
    with pytest.raises(BctError, match=word):
        split(folder, *arguments)


def test_orders_need_names(folder, split, tmp_path):
    (folder / "train/11").rename(folder / "train/x")
    with pytest.raises(BctError, match="class 'x' is not a number"):
        split(folder, "--by", "class", "--order", "numeric")
    write_faces(tmp_path / "train.rec", [1, 1, 1])
    with pytest.raises(BctError, match="have no names"):
        split(tmp_path / "train.rec", "--by", "class", "--order", "numeric")


def test_a_link_to_itself_is_no_folder(folder, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    done = run_script("tools/split_dataset.py", folder, "--out", tmp_path / "loop")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 2
