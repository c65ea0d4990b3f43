"""Maps between classes: from names and from files, and every way in which one can point nowhere."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.data.label_map import load_map, new_to_old
from bct.errors import BctError


def refused(word, function, *arguments):
    with pytest.raises(BctError) as info:
        function(*arguments)
    assert len(str(info.value).splitlines()) == 2, str(info.value)
    assert word in str(info.value), str(info.value)


classes = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=12, unique=True)


@settings(max_examples=50)
@given(classes, classes)
def test_a_class_has_the_old_label_of_its_name(new, old):
    if not set(new) & set(old):
        return refused("no class of the new training set", new_to_old, new, old)
    found = new_to_old(new, old)
    assert found.dtype == np.int64 and found.shape == (len(new),)
    for name, label in zip(new, found.tolist(), strict=True):
        assert old[label] == name if label >= 0 else name not in old


@pytest.mark.parametrize(
    ("new", "old", "word"),
    [
        (None, ["a"], "the new training set has no names"),
        (["a"], None, "the old model has no names"),
        (["a"], [], "the old model has no names"),
        (["a", "b", "a"], ["a"], "the new training set has two classes called 'a'"),
        (["a"], ["b", "b"], "the old model has two classes called 'b'"),
        (["a"], "a", "the old model has no names"),
        (["a"], [["a"]], "the old model has no names"),
    ],
)
def test_names_that_can_not_be_matched(new, old, word):
    refused(word, new_to_old, new, old)


def write(path, value):
    if path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        np.save(path, value, allow_pickle=True)
    return path


WANT = [2, -1, 0, -1, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("list.json", WANT),
        ("object.json", {"0": 2, "4": 1, "2": 0}),
        ("array.npy", np.array(WANT)),
        ("int8.npy", np.array(WANT, np.int8)),
        ("dict.npy", {0: 2, 4: 1, 2: 0}),
        ("numpy.npy", {np.int64(0): np.int32(2), np.int64(4): np.int32(1), 2: 0}),
        ("minus.npy", {0: 2, 4: 1, 2: 0, 3: -1}),
    ],
)
def test_files(tmp_path, name, value):
    found = load_map(write(tmp_path / name, value), 5, 3)
    assert found.tolist() == WANT and found.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("a.json", [0, 1, 3], "maps class 2 to 3, the old model has 0..2"),
        ("a.json", [0, -2, 1], "maps class 1 to -2"),
        ("a.json", {"3": 0}, "maps class 3, the new training set has 0..2"),
        ("a.json", {"-1": 0}, "is no label"),
        ("a.json", {"a": 0}, "is no label"),
        ("a.json", {"0": 1, "00": 2}, "is no label"),
        ("a.json", [0, 1.0, 2], "is no label"),
        ("a.json", [0, True, 2], "is no label"),
        ("a.json", [0, None, 2], "is no label"),
        ("a.json", [0, 10**30, 2], "maps class 1 to 1"),
        ("a.json", [0, 1], "maps 2 classes, the new training set has 3"),
        ("a.json", [-1, -1, -1], "maps no class"),
        ("a.json", {}, "maps no class"),
        ("a.json", "x", "holds no label map"),
        ("a.npy", np.array([0, 1, 3]), "maps class 2 to 3"),
        ("a.npy", np.array([0.0, 1.0, 2.0]), "holds float64 (3,)"),
        ("a.npy", np.zeros((3, 1), int), "holds int64 (3, 1)"),
        ("a.npy", np.array([0, 1], np.uint64), "maps 2 classes"),
        ("a.npy", {5: 0}, "maps class 5"),
        ("a.npy", {0: 5}, "maps class 0 to 5"),
        ("a.npy", {0: "a"}, "is no label"),
        ("a.npy", {"0": 1.5}, "is no label"),
        ("a.npy", {(0, 1): 1}, "can't be read as a label map (a key of type tuple)"),
        ("a.npy", [{0: 1}, {1: 1}], "can't be read as a label map"),
        ("a.txt", [0], "neither .json nor .npy"),
    ],
)
def test_files_that_point_nowhere(tmp_path, name, value, word):
    path = tmp_path / name
    if path.suffix != ".txt":
        write(path, value)
    refused(word, load_map, path, 3, 3)


def test_files_that_are_damaged(tmp_path):
    refused("does not exist", load_map, tmp_path / "a.npy", 3, 3)
    refused("does not exist", load_map, tmp_path / "a.json", 3, 3)
    for name, value in (("a.npy", np.arange(3)), ("a.npy", {0: 1}), ("a.json", [0, 1, 2])):
        whole = write(tmp_path / name, value).read_bytes()
        for cut in range(0, len(whole), 7 if name == "a.npy" else 1):
            (tmp_path / name).write_bytes(whole[:cut])
            with pytest.raises(BctError):
                load_map(tmp_path / name, 3, 3)


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("place", ["key", "value", "whole"])
def test_nothing_in_a_pickle_runs(tmp_path, place):
    evil = Evil(tmp_path / "executed")
    value = {"key": {evil: 1}, "value": {0: evil}, "whole": np.array(evil, object)}[place]
    refused("it asks for", load_map, write(tmp_path / "a.npy", value), 3, 3)
    assert not (tmp_path / "executed").exists()
