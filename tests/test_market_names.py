"""Who and which camera: Market-1501's real names, and what is no such name."""

import csv

import pytest

from bct.data.market_names import parse
from bct.errors import BctError


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b"0002_c1s1_000451_03.jpg", (2, 1)),
        (b"query/1501_c6s4_001902_00.jpg", (1501, 6)),
        (b"-1_c3s1_000401_03.jpg", (-1, 3)),
        (b"0000_c2s1_000301_00.png", (0, 2)),
        (b"0005_c2_f0046985.jpg", (5, 2)),  # DukeMTMC
    ],
)
def test_names(name, found):
    assert parse(name) == found


@pytest.mark.parametrize(
    "name",
    [
        *(b"", b"a.jpg", b"0002.jpg", b"0002_1s1_000451_03.jpg", b"0002_c0s1_000451_03.jpg"),
        *(b"-2_c1s1_000451_03.jpg", b"c1s1_000451_03.jpg", b"0002_cs1_000451_03.jpg"),
        *(b"0002_c1s1", b"0002_c1s1_", b"\xff_c1s1_0_0.jpg", b"0002_c1s1_a\nb/x.jpg"),
        *("\u0661_c1s1_000451_03.jpg".encode(), b"1" * 10 + b"_c1s1_000451_03.jpg"),
    ],
)
def test_what_is_no_name(name):
    with pytest.raises(BctError, match="no name of Market-1501") as error:
        parse(name)
    assert (
        len(str(error.value).splitlines()) == 2 and str(error.value).replace("\n", "").isprintable()
    )


def test_all_names_of_market(shared):
    """Counts as published: 751 people to train on, 750 others, 2798 distractors, 3819 junk."""
    found = {}
    for part in ("train", "query", "test"):
        with open(shared / f"data/reid/market1501_{part}.csv") as file:
            rows = list(csv.reader(file))
        found[part] = [parse(name.encode()) for _, name in rows]
        assert [pid for pid, _ in found[part]] == [int(pid) for pid, _ in rows]
        assert {camera for _, camera in found[part]} == set(range(1, 7))
    people = {part: [pid for pid, _ in pairs] for part, pairs in found.items()}
    assert (len(set(people["train"])), len(set(people["query"]))) == (751, 750)
    assert (people["test"].count(0), people["test"].count(-1)) == (2798, 3819)
