"""AdvBCT's split: published golden values, its rules worked out apart, and the tool's files."""

import sys

import numpy as np
import pytest
from PIL import Image
from support.pictures import picture, write_faces

from bct.data.label_map import new_to_old
from bct.data.sets import RecordList, RecordSet, open_images
from bct.errors import BctError
from bct.files import read_json
from tools import make_landmark_views, make_people, split_dataset
from tools.formats.advbct_lists import by_class, by_data, names_of, old_classes, old_images

SIZES = [1, 2, 3, 4, 5, 10, 15, 25, 1, 35, 7, 20, 45, 1]
LABELS = np.repeat(np.arange(len(SIZES)), SIZES)
SHUFFLED = LABELS[np.random.default_rng(0).permutation(len(LABELS))]


@pytest.fixture
def split(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["split_dataset.py", *map(str, arguments)])
        split_dataset.main()

    return call


def theirs(labels, ratio):
    """{class: its old images} as AdvBCT has it, with numpy's global generator."""
    state, found = np.random.get_state(), {}  # noqa: NPY002
    for label in range(labels.max() + 1):
        images = np.flatnonzero(labels == label)
        if len(images) < 4:
            found[label] = images[:1].tolist()
            continue
        np.random.seed(666 + label)  # noqa: NPY002
        order = np.arange(len(images))
        np.random.shuffle(order)  # noqa: NPY002
        found[label] = sorted(images[order[: int(len(images) * ratio)]].tolist())
    np.random.set_state(state)  # noqa: NPY002
    return found


@pytest.mark.parametrize("published", [False, True])
def test_golden_classes(published):
    """The published allocation of GLDv2-clean's 81,313 classes."""
    old = old_classes(81313, 30, published)
    assert len(old) == 24393 and old.sum() == 989789895
    assert old[:10].tolist() == [1, 4, 7, 14, 22, 24, 26, 28, 32, 43]
    first = {80958, 51640, 47583, 49961, 36200, 49080, 30853, 19823, 5297, 70793}
    assert first <= set(old.tolist())
    lists = {part.name: part for part in by_class(np.arange(81313), 30, published)}
    assert {name: len(part.classes) for name, part in lists.items()} == {
        "old_30percent_class": 24393,
        "new_100percent_class": 81313,
        "new_70percent_class": 56920,
    }


@pytest.mark.parametrize("published", [False, True])
def test_golden_images(published):
    old, new = old_images(np.repeat(np.arange(8), 10), 30, published)
    for label, want in ((0, {5, 7, 0}), (1, {1, 6, 8}), (7, {5, 7, 0})):
        assert set(np.flatnonzero(old[10 * label : 10 * label + 10]).tolist()) == want
    assert (new == ~old).all() and old.sum() == 24


@pytest.mark.parametrize(
    ("percent", "want"), [(29, (28, 71)), (57, (56, 43)), (58, (57, 42)), (30, (30, 70))]
)
def test_names(percent, want):
    assert names_of(percent, published=True) == want
    assert names_of(percent) == (percent, 100 - percent)


@pytest.mark.parametrize("labels", [LABELS, SHUFFLED])
@pytest.mark.parametrize("ratio", [30, 50, 75])
def test_images_are_those_of_the_reference(labels, ratio):
    """But for the only image of a class, which only as published is in both."""
    want = theirs(labels, ratio / 100)
    for published in (False, True):
        old, new = old_images(labels, ratio, published)
        single = np.bincount(labels)[labels] == 1
        for label, images in want.items():
            found = np.flatnonzero(old & (labels == label)).tolist()
            assert found == ([] if SIZES[label] == 1 and not published else images)
        assert (old | new).all() and ((old & new) == (single if published else False)).all()


def test_every_class_keeps_an_old_image():
    """n = 4 keeps one; at 10 % there would be none, which the published rule can't list."""
    labels = np.repeat([0, 1, 2], [4, 4, 40])
    assert np.bincount(labels[old_images(labels, 30, True)[0]]).tolist() == [1, 1, 12]
    assert np.bincount(labels[old_images(labels, 10)[0]]).tolist() == [1, 1, 4]
    with pytest.raises(BctError, match="10 % of class 0 is no image, as published: 3 classes"):
        by_data(labels, 10, published=True)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("way", [by_class, by_data])
def test_old_labels_are_a_prefix(way, published):
    old, whole, rest = way(SHUFFLED, 30, published)
    assert whole.classes[: len(old.classes)].tolist() == old.classes.tolist()
    for part in (old, whole, rest):
        assert (part.classes[part.labels] == SHUFFLED[part.images]).all()
        assert np.unique(part.labels).tolist() == list(range(len(part.classes)))
        assert len(set(part.images.tolist())) == len(part.images)
        classes = SHUFFLED[part.images]
        assert (np.diff(classes) >= 0).all()  # class by class, of each in the set's order
        assert (np.diff(part.images)[np.diff(classes) == 0] > 0).all()
    assert sorted(whole.images.tolist()) == list(range(len(SHUFFLED)))
    assert set(old.images.tolist()) | set(rest.images.tolist()) == set(whole.images.tolist())
    both = set(old.images.tolist()) & set(rest.images.tolist())
    single = set(np.flatnonzero(np.bincount(SHUFFLED)[SHUFFLED] == 1).tolist())
    assert both == (single if published and way is by_data else set())


def test_a_part_may_not_be_empty():
    with pytest.raises(BctError, match="0 of 3 classes for the old model leaves a part empty"):
        by_class(np.array([0, 1, 2]), 30)
    with pytest.raises(BctError, match="leaves a part empty"):
        by_data(np.array([0, 1, 2]), 30)


def test_four_allocations_of_landmarks_from_one_command(tmp_path, split, capsys):
    make_landmark_views.draw(tmp_path / "views", 0)
    source = tmp_path / "views/gldv2/label_20.txt"
    split(source, "--split", "advbct", "--out", tmp_path / "lists")
    capsys.readouterr()
    names = {path.name for path in (tmp_path / "lists").glob("*.txt")}
    shares = ("old_30percent", "new_100percent", "new_70percent")
    assert names == {f"gldv2_train_{s}_{k}.txt" for s in shares for k in ("class", "data")}
    parts = {name: open_images(tmp_path / "lists" / name) for name in names}
    whole = open_images(source)
    for name, part in parts.items():
        about = read_json((tmp_path / "lists" / name).with_suffix(".json"))
        assert about["images"] == len(part) and about["classes"] == part.num_classes
        assert part.class_names == about["class_names"] and part.image(0).shape == (112, 112, 3)
        where = dict(zip(whole.names, whole.labels, strict=True))
        for image, label in zip(part.names, part.labels, strict=True):
            assert part.class_names[label] == str(where[image])
    old, new, rest = (parts[f"gldv2_train_{s}_class.txt"] for s in shares)
    assert (old.num_classes, new.num_classes, rest.num_classes) == (6, 20, 14)
    assert new_to_old(new.class_names, old.class_names).tolist() == [*range(6)] + [-1] * 14
    old, new, rest = (parts[f"gldv2_train_{s}_data.txt"] for s in shares)
    assert [len(part) for part in (old, new, rest)] == [60, 200, 140]
    assert not set(old.names) & set(rest.names)
    split(source, "--split", "advbct", "--out", tmp_path / "lists")
    assert capsys.readouterr().out.count("reusing it") == 6
    split(source, "--split", "advbct", "--ratio", 50, "--by", "class", "--stem", "mine")
    half = open_images(source.with_name("mine_old_50percent_class.txt"))
    assert half.num_classes == 10 and len(half) == 100
    with pytest.raises(BctError, match="was not made from"):  # its classes have other names
        csv = source.with_name("train_clean.csv")
        split(csv, "--split", "advbct", "--ratio", 50, "--by", "class", "--stem", "mine")


def test_people_and_the_published_names(tmp_path, split):
    make_people.draw(tmp_path, 0)
    train = open_images(tmp_path / "bounding_box_train")
    split(
        tmp_path / "bounding_box_train", "--split", "advbct", "--ratio", 29, "--parity", "published"
    )
    old, new, rest = (
        open_images(tmp_path / f"market1501_train_{share}percent_class.txt")
        for share in ("old_28", "new_100", "new_71")
    )
    assert old.num_classes == 8 and set(old.class_names) < set(train.class_names)
    assert new.class_names == old.class_names + rest.class_names
    singles = np.sum(np.bincount(train.labels) == 1)
    data = [
        open_images(tmp_path / f"market1501_train_{share}percent_data.txt")
        for share in ("old_28", "new_71")
    ]
    assert sum(map(len, data)) == len(train) + singles


def test_records_are_listed(tmp_path, split):
    """Nothing is copied: the lists are of numbers in the record file, with labels of their own."""
    write_faces(tmp_path / "train.rec", [4, 5, 4, 6, 4, 5, 4, 4, 4, 4])
    records = RecordSet(tmp_path / "train.rec")
    split(tmp_path, "--split", "advbct")
    assert not list(tmp_path.glob("*_part_*"))
    old = open_images(tmp_path / "ms1m_train_old_30percent_class.txt")
    new = open_images(tmp_path / "ms1m_train_new_100percent_class.txt")
    assert isinstance(old, RecordList) and old.num_classes == 3
    assert old.class_names == [str(label) for label in old_classes(10, 30)]
    assert new.class_names[:3] == old.class_names and len(new) == len(records)
    for k in range(len(old)):
        data, label = old.payload(k)
        origin = int(old.names[k])
        assert bytes(data) == bytes(records.payload(origin)[0])
        assert old.class_names[label] == str(records.labels[origin])
    split(tmp_path / "ms1m_train_new_100percent_class.txt", "--split", "advbct", "--by", "data",
          "--stem", "again")  # fmt: skip
    again = open_images(tmp_path / "again_old_30percent_data.txt")
    assert again.class_names == new.class_names and len(again) == 10


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--split", "advbct", "--classes", "2"], "its own order"),
        (["--split", "advbct", "--order", "numeric"], "its own order"),
        (["--split", "advbct", "--stem", "a/b"], "no start of a name"),
        (["--split", "advbct", "--stem", "a\nb"], "no start of a name"),
        (["--split", "advbct", "--ratio", "1"], "leaves a part empty"),
        (["--parity", "published"], "are about --split advbct"),
        (["--stem", "x"], "are about --split advbct"),
    ],
)
def test_what_can_not_be_leaves_nothing(tmp_path, split, arguments, word):
    for label in range(4):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(picture(label, k, 8)).save(tmp_path / "set" / str(label) / f"{k}.png")
    with pytest.raises(BctError, match=word):
        split(tmp_path / "set", *arguments)
    assert not list(tmp_path.rglob("*.txt")) + list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("x_old_30percent_class.txt", "<the whole list> --split advbct --ratio 30 --out {}"),
        ("x_new_60percent_data.txt", "<the whole list> --split advbct --ratio 40 --out {}"),
        ("x_new_100percent_data.txt", "<the whole list> --split advbct --ratio 30 --out {}"),
        ("x_part_50_class.txt", "<the whole set> --by class --ratio 50 --out {}"),
        ("x_part_70_data.txt", "<the whole set> --out {}"),
        ("x_part_70_class.rec", "<the whole set>"),
    ],
)
def test_a_part_that_is_missing_says_how_it_is_made(tmp_path, name, asked):
    with pytest.raises(BctError, match="there is no data set") as error:
        open_images(tmp_path / name)
    assert error.value.do.endswith(f"split_dataset.py {asked.format(tmp_path)}")


def test_another_ratio_beside_the_first_leaves_nothing(tmp_path, split):
    """The list of all classes has one name, and another content."""
    for label in range(8):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        Image.fromarray(picture(label, 0, 8)).save(tmp_path / "set" / str(label) / "0.png")
    words = "--split", "advbct", "--by", "class", "--out", tmp_path / "lists"
    split(tmp_path / "set", *words, "--ratio", "30")
    before = {file: file.read_bytes() for file in (tmp_path / "lists").iterdir()}
    with pytest.raises(BctError, match=r"new_100percent_class\.txt exists and was not made"):
        split(tmp_path / "set", *words, "--ratio", "51")
    assert {file: file.read_bytes() for file in (tmp_path / "lists").iterdir()} == before
