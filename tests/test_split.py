"""The split rule, on golden counts and on real faces."""

import subprocess
import sys

import numpy as np
import pytest
from faces import write_faces

from bct.datasets import RecordFaces
from bct.errors import BctError
from tools.split_dataset import split_by_class, split_by_data, write_part

# worked out with the reference (spec of the MixBCT splitter)
COUNTS = [1, 2, 3, 4, 5, 10, 15, 25, 1, 35, 7, 20, 45, 1]
DATA30 = [1, 1, 1, 1, 2, 3, 4, 8, 1, 10, 2, 6, 14, 1]
DATA70 = [1, 1, 2, 3, 3, 7, 11, 17, 1, 25, 5, 14, 31, 1]
LABELS = np.repeat(np.arange(len(COUNTS)), COUNTS)


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
    source = RecordFaces(write_faces(tmp_path / "train.rec", COUNTS[:6]))
    part = split_by_class(source.labels, 30)[1]
    write_part(source, part, tmp_path / "part.rec")
    copy = RecordFaces(tmp_path / "part.rec")
    assert copy.num_classes == 4 and len(copy) == len(part[0])
    assert copy.reader.read(0)[0].label.tolist() == [len(copy) + 1, 4]
    for i, origin in enumerate(part[0]):
        data, label = copy.payload(i)
        assert bytes(data) == bytes(source.payload(int(origin))[0])
        assert label == source.labels[origin] - 2
        assert copy.reader.read(i + 1)[0].id == i + 1


def test_command_line_names_reuse_and_refusal(tmp_path):
    write_faces(tmp_path / "train.rec", [4, 4, 4, 4])

    def split(*more):
        return subprocess.run(
            [sys.executable, "tools/split_dataset.py", str(tmp_path), *more],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert split("--ratio", "25").returncode == 0
    names = {p.name for p in tmp_path.glob("*.rec")}
    assert names == {"train.rec"} | {
        f"train_part_{p}_{k}.rec" for p in (25, 75) for k in ("class", "data")
    }
    assert split("--ratio", "25").stdout.count("reusing it") == 4
    write_faces(tmp_path / "train.rec", [4, 4, 4, 5])
    before = (tmp_path / "train_part_25_class.rec").read_bytes()
    again = split("--ratio", "25")
    assert again.returncode == 1 and len(again.stderr.strip().splitlines()) == 2
    assert (tmp_path / "train_part_25_class.rec").read_bytes() == before


def test_a_part_may_not_be_empty():
    with pytest.raises(BctError, match="leaves a part empty"):
        split_by_class(np.array([0, 0, 1]), 5)


def test_lfw(shared):
    faces = RecordFaces(shared / "data/lfw/train.rec")
    (old, old_labels), (new, new_labels) = split_by_class(faces.labels, 30)
    assert (len(old), old_labels.max() + 1, len(new), new_labels.max() + 1) == (
        1777,
        355,
        4894,
        829,
    )
