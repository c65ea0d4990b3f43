"""The cache of large indices: the numbers of the text, or none."""

import logging
import multiprocessing
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bct.data import record_index
from bct.data.record_index import cache_folder, read_index
from bct.data.recordio import MAGIC, RecordReader
from bct.errors import BctError

numbers = st.integers(0, 2**63 - 2)
RECORD = np.dtype(
    [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8", 2)]
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own. Warnings come once per process, here per test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    record_index._warn.cache_clear()
    return folder / "bct" / "index"


def index_text(keys, offsets):
    return "".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True))


@pytest.fixture
def idx(tmp_path):
    """100 keys that are in no order, with their offsets."""
    path = tmp_path / "a.idx"
    rng = np.random.default_rng(0)
    path.write_text(index_text(rng.permutation(100), 40 * np.arange(100)))
    return path


def same(found, expected):
    assert len(found) == len(expected) == 2
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == np.int64 and not ours.flags.writeable
        assert ours.tolist() == list(plain)


def plain(path):
    """The numbers of a well-formed index, line by line: the plain twin."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [int(key) for key, _ in rows], [int(offset) for _, offset in rows]


@settings(max_examples=80)
@given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40), end=st.booleans())
def test_cached_and_parsed_are_the_text(tmp_path_factory, rows, end):
    """In every order, with repeated keys, with or without the last newline."""
    path = tmp_path_factory.mktemp("idx") / "a.idx"
    keys, offsets = zip(*rows, strict=True)
    text = index_text(keys, offsets)
    path.write_text(text if end else text[:-1])
    assert plain(path) == (list(keys), list(offsets))
    for cached_from in (1 << 20, 0, 0):  # parsed; parsed and kept; from the cache
        same(read_index(path, cached_from), (keys, offsets))


@settings(max_examples=200)
@given(text=st.text("019\t\n\r -.x", max_size=14))
def test_text_is_read_as_lines_or_refused(tmp_path_factory, text):
    """Never other numbers than line by line, and never fewer; \\r\\n is a newline."""
    path = tmp_path_factory.mktemp("idx") / "a.idx"
    path.write_bytes(text.encode())
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    fields = [line.split("\t") for line in lines]
    good = all(len(f) == 2 and all(x.isascii() and x.isdigit() for x in f) for f in fields)
    for cached_from in (1 << 20, 0):
        if good:
            expected = [[int(x) for x in column] for column in zip(*fields, strict=True)]
            same(read_index(path, cached_from), expected)
        else:
            with pytest.raises(BctError, match=r"a\.idx does not match its record file"):
                read_index(path, cached_from)


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 10**40])
@pytest.mark.parametrize("text", ["1\t{}\n2\t0\n", "{}\t0\n"])
def test_numbers_that_int64_does_not_hold_are_refused(tmp_path, cache, number, text):
    (tmp_path / "a.idx").write_text(text.format(number))
    with pytest.raises(BctError, match="does not match"):
        read_index(tmp_path / "a.idx", 0)
    assert not cache.exists()


def test_the_second_reading_parses_nothing(idx, cache):
    same(read_index(idx, 0), plain(idx))
    (kept,) = cache.iterdir()
    inode = kept.stat().st_ino
    table = read_index(idx, 0)
    assert all(isinstance(column.base.base, np.memmap) for column in table)  # shared pages
    assert kept.stat().st_ino == inode  # not written again
    # what is kept is what is used: other numbers with their check sum are believed
    forged = np.arange(4, dtype="<i8")
    record_index._keep(kept.name, forged.reshape(2, 2))
    same(read_index(idx, 0), ([0, 1], [2, 3]))


def test_a_small_index_is_not_cached(idx, cache):
    same(read_index(idx), plain(idx))
    assert not cache.exists()


def test_a_changed_text_is_noticed(idx, cache):
    """Also one of the same length and time, back and forth."""
    before, times = idx.read_text(), (idx.stat().st_atime_ns, idx.stat().st_mtime_ns)
    after = before.replace("\t40\n", "\t44\n")
    assert len(after) == len(before) and after != before
    for text in (before, after, before, after):
        idx.write_text(text)
        os.utime(idx, ns=times)
        same(read_index(idx, 0), plain(idx))
    assert len(list(cache.iterdir())) == 2


def damaged(data, kind):
    rng = np.random.default_rng(len(data))
    at = int(rng.integers(len(data)))
    return {
        "truncated": data[: len(data) // 16 * 8],
        "not of whole numbers": data[:-3],
        "a row cut out": data[:80] + data[96:],
        "shifted by one": data[8:-8] + data[:8] + data[-8:],
        "a bit": data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
        "the check sum": data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        "longer": data + data[:16],
        "zeros": bytes(len(data)),
        "8 zeros": bytes(8),
        "empty": b"",
        "float": np.arange(201, dtype="<f8").tobytes(),
        "an .npy": b"\x93NUMPY\x01\0" + data,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["truncated", "not of whole numbers", "a row cut out", "shifted by one", "a bit",
     "the check sum", "longer", "zeros", "8 zeros", "empty", "float", "an .npy"],
)  # fmt: skip
def test_a_damaged_cache_is_made_again(idx, cache, kind):
    read_index(idx, 0)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    assert damaged(whole, kind) != whole
    kept.write_bytes(damaged(whole, kind))
    same(read_index(idx, 0), plain(idx))
    assert kept.read_bytes() == whole
    assert list(cache.iterdir()) == [kept]


def test_a_cached_file_of_another_text_is_not_used(idx, cache):
    other = idx.with_name("b.idx")
    other.write_text(idx.read_text().replace("\t40\n", "\t44\n"))
    read_index(idx, 0)
    (first,) = cache.iterdir()
    read_index(other, 0)
    (second,) = set(cache.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    same(read_index(other, 0), plain(other))


def test_every_flipped_bit_is_noticed(tmp_path, cache):
    path = tmp_path / "a.idx"
    path.write_text("1\t40\n0\t0\n")
    read_index(path, 0)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(data)
        assert record_index._cached(kept.name) is None
    kept.write_bytes(whole)
    assert record_index._cached(kept.name).tolist() == [[1, 0], [40, 0]]


@pytest.mark.parametrize("place", ["a file", "no home", "a folder of that name"])
def test_a_folder_that_cannot_be_written(idx, tmp_path, monkeypatch, caplog, place):
    """Opening works, says so once, and writes nowhere else."""
    if place == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elif place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # nobody's number
    else:
        read_index(idx, 0)
        (kept,) = cache_folder().iterdir()
        kept.unlink()
        kept.mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            same(read_index(idx, 0), plain(idx))
    assert len(caplog.records) == 1 and "XDG_CACHE_HOME" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_relative_cache_folder_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bct" / "index"


def test_several_processes_at_once(idx, cache):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.starmap(read_index, [(idx, 0)] * 16)
    for table in found:
        np.testing.assert_array_equal(table, plain(idx))
    (kept,) = cache.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) & 0o600 == 0o600


def test_a_missing_index_is_the_callers_business(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_index(tmp_path / "none.idx")


# ---- readers


def write(path, keys):
    """Records without data, all of 32 bytes, with these keys (n,); the label is the key."""
    records = np.zeros(len(keys), RECORD)
    records["magic"], records["length"] = MAGIC, 24
    records["label"], records["id"][:, 0] = keys, keys
    path.write_bytes(records.tobytes())
    path.with_suffix(".idx").write_text(index_text(keys.tolist(), range(0, 32 * len(keys), 32)))
    return path


ORDERS = {
    "from 0": lambda n: np.arange(n),
    "from 7": lambda n: np.arange(7, n + 7),
    "0 last": lambda n: np.roll(np.arange(n), -1),
    "0 and 1 last": lambda n: np.roll(np.arange(n), -2),
    "with gaps": lambda n: np.cumsum(1 + np.arange(n) % 3),
    "gaps and 0 last": lambda n: np.roll(np.cumsum(1 + np.arange(n) % 3) - 1, -1),
    "backwards": lambda n: np.arange(n)[::-1],
    "shuffled": lambda n: np.random.default_rng(n).permutation(n),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 2, 50])
def test_every_key_is_found_in_every_order(tmp_path, order, count):
    keys = ORDERS[order](count)
    reader = RecordReader(write(tmp_path / "a.rec", keys))
    assert reader.keys.tolist() == keys.tolist()
    position = {key: i for i, key in enumerate(keys.tolist())}
    for key in range(-3, int(keys.max()) + 4):
        assert (key in reader) == (key in position)
        if key in position:
            assert reader.offset(key) == 32 * position[key] and reader.read(key)[0].id == key
        else:
            with pytest.raises(BctError, match=f"keys run from {keys.min()} to {keys.max()}"):
                reader.offset(key)
    np.testing.assert_array_equal(reader.heads()[0], keys.astype(np.float32))


def test_a_reader_of_a_large_index(tmp_path, cache):
    """Its numbers come from the cache, without a copy; the same ones as from the text."""
    keys = np.roll(np.arange(320_000), -1)
    path = write(tmp_path / "a.rec", keys)
    for _ in range(2):
        reader = RecordReader(path)
        assert len(list(cache.iterdir())) == 1
        assert isinstance(reader.offsets.base.base, np.memmap)
        np.testing.assert_array_equal(reader.keys, keys)
        np.testing.assert_array_equal(reader.offsets, 32 * np.arange(len(keys)))
        assert reader.read(0)[0].id == 0 and reader.offset(0) == 32 * (len(keys) - 1)
    with open(path.with_suffix(".idx"), "a") as file:
        file.write("5\t0\n")
    with pytest.raises(BctError, match="a key occurs twice"):
        RecordReader(path)


@pytest.mark.parametrize("offsets", [[0, 32, 32], [0, 34, 64], [64, 32, 32], [32, 0, 34]])
def test_offsets_that_are_no_starts(tmp_path, offsets):
    path = write(tmp_path / "a.rec", np.arange(3))
    path.with_suffix(".idx").write_text(index_text(range(3), offsets))
    with pytest.raises(BctError, match="not distinct starts of records"):
        RecordReader(path)
