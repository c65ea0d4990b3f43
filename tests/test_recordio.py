"""The record format: round trips, MXNet-written files byte for byte, and damaged files."""

import os
import pickle
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pictures import write_faces

from bct.data.loader import Loader
from bct.data.record_writer import RecordWriter
from bct.data.recordio import MAGIC, Header, RecordReader
from bct.data.sets import RecordSet
from bct.errors import BctError

MAGIC_BYTES = struct.pack("<I", MAGIC)

floats = st.floats(width=32, allow_nan=False)
labels = st.one_of(floats, st.lists(floats, min_size=1, max_size=5))
# payloads rich in the magic, aligned or not
data = st.lists(st.one_of(st.binary(max_size=9), st.just(MAGIC_BYTES)), max_size=8).map(b"".join)
ids = st.integers(0, 2**64 - 1)


def write(path, records):
    with RecordWriter(path) as writer:
        for key, (header, payload) in enumerate(records):
            writer.write(key, header, payload)
    return path


def small(path, count=5):
    return write(path, [(Header(float(k), k), bytes([k]) * (k + 3)) for k in range(count)])


@settings(max_examples=150)
@given(
    records=st.lists(st.tuples(st.builds(Header, labels, ids, ids), data), min_size=1, max_size=6)
)
def test_what_is_written_is_read(tmp_path_factory, records):
    path = write(tmp_path_factory.mktemp("rec") / "a.rec", records)
    reader = RecordReader(path)
    assert reader.keys.tolist() == list(range(len(records)))
    for key, (header, payload) in enumerate(records):
        found, read = reader.read(key)
        np.testing.assert_array_equal(np.float32(found.label), np.float32(header.label))
        assert np.ndim(found.label) == np.ndim(header.label)
        assert (found.id, found.id2, bytes(read)) == (header.id, header.id2, payload)
    first = [np.ravel(np.float32(header.label))[0] for header, _ in records]
    np.testing.assert_array_equal(reader.heads()[0], first)
    path.with_suffix(".idx").unlink()
    used = Counter(header.id for header, _ in records)
    unusable = sum(n for id, n in used.items() if n > 1 or id >= 2**63)
    if 0 < 2 * unusable < len(records):  # damage: positions would be other keys
        with pytest.raises(BctError, match="its key can't be rebuilt"):
            RecordReader(path)
    else:
        np.testing.assert_array_equal(RecordReader(path).offsets, reader.offsets)


def test_layout_of_a_whole_and_of_a_split_record(tmp_path):
    """Bytes worked out by hand from the format's description."""
    body = b"ab" + b"\0\0" + MAGIC_BYTES + b"xyz"  # the magic lies at 24 + 4, a multiple of 4
    path = write(tmp_path / "a.rec", [(Header(2.0, 7, 9), b"abc"), (Header([1.0]), body)])
    whole = struct.pack("<IIIfQQ", MAGIC, 24 + 3, 0, 2.0, 7, 9) + b"abc" + b"\0"
    payload = struct.pack("<IfQQf", 1, 0.0, 0, 0, 1.0) + body
    first, last = payload[:32], payload[36:]
    assert payload[32:36] == MAGIC_BYTES
    split = struct.pack("<II", MAGIC, 1 << 29 | 32) + first
    split += struct.pack("<II", MAGIC, 3 << 29 | 3) + last + b"\0"
    assert path.read_bytes() == whole + split
    assert path.with_suffix(".idx").read_text() == f"0\t0\n1\t{len(whole)}\n"


def test_rewriting_an_mxnet_file_gives_the_same_bytes(shared, tmp_path):
    source = shared / "data/lfw/train.rec"
    reader = RecordReader(source)
    order = np.argsort(reader.offsets)
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in reader.keys[order]:
            writer.write(int(key), *reader.read(int(key)))
    assert (tmp_path / "train.rec").read_bytes() == source.read_bytes()
    assert (tmp_path / "train.idx").read_text() == source.with_suffix(".idx").read_text()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("recordio_adaface_im2rec/train", 8),
        ("recordio_detection_flag9/train", 12),
        ("recordio_cgzzt/val", 392),
    ],
)
def test_files_of_other_writers(shared, name, count):
    path = shared / "data/recordio_samples" / f"{name}.rec"
    reader = RecordReader(path)
    assert len(reader) == count
    for key in reader.keys:
        assert bytes(reader.read(int(key))[1][:2]) == b"\xff\xd8"
    lst = path.with_suffix(".lst")
    if "cgzzt" not in name:  # that one's list belongs to another file
        listed = {
            int(line.split("\t")[0]): line.split("\t")[-1] for line in lst.read_text().splitlines()
        }
        assert set(listed) == set(reader.keys.tolist())
    if "adaface" in name:
        for key, relative in listed.items():
            assert (
                bytes(reader.read(key)[1])
                == next(path.parent.rglob(relative.split("/")[-1])).read_bytes()
            )


def test_without_an_index_keys_are_ids_or_else_positions(tmp_path):
    path = write(tmp_path / "a.rec", [(Header(0.0, 5), b"a"), (Header(1.0, 3), b"b")])
    path.with_suffix(".idx").unlink()
    assert RecordReader(path).keys.tolist() == [5, 3]
    path = write(tmp_path / "b.rec", [(Header(0.0, 0), b"a"), (Header(1.0, 0), b"b")])
    path.with_suffix(".idx").unlink()
    assert RecordReader(path).keys.tolist() == [0, 1]


def test_a_reader_survives_pickling(tmp_path):
    reader = pickle.loads(pickle.dumps(RecordReader(small(tmp_path / "a.rec"))))
    assert bytes(reader.read(3)[1]) == b"\3" * 6


def test_records_beyond_4_gib(tmp_path):
    path = small(tmp_path / "a.rec", count=2)
    first, second = RecordReader(path).offsets
    record = path.read_bytes()[second:]
    far = 5 * 2**30
    with open(path, "r+b") as file:  # a sparse file: takes no space
        file.truncate(second)
        file.seek(far)
        file.write(record)
    path.with_suffix(".idx").write_text(f"0\t{first}\n1\t{far}\n")
    reader = RecordReader(path)
    assert reader.offsets.dtype == np.int64 and reader.offset(1) == far
    assert bytes(reader.read(1)[1]) == b"\1" * 4
    assert reader.heads()[0].tolist() == [0.0, 1.0]


def test_a_file_that_is_truncated_while_it_is_open(tmp_path):
    """Memory beyond a file's end kills who touches it; reading it says what has happened."""
    path = write(tmp_path / "a.rec", [(Header(float(k), k), bytes(9000)) for k in range(5)])
    reader = RecordReader(path)
    walk = reader.stretches()
    next(walk)
    os.truncate(path, reader.offset(2) + 4000)  # within a record, and within a page
    assert len(reader.read(1)[1]) == 9000
    for key in (2, 4):
        with pytest.raises(BctError, match=rf"key {key} .* has been truncated since"):
            reader.read(key)
    with pytest.raises(BctError, match="truncated since it was opened"):
        reader.heads()
    with pytest.raises(BctError, match="truncated since it was opened"):
        list(walk)
    os.truncate(path, 0)
    with pytest.raises(BctError, match="truncated"):
        reader.read(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_file_truncated_under_a_run(tmp_path, workers):
    """The run ends with two lines, in the main process and with workers."""
    rec = write_faces(tmp_path / "train.rec", [8, 8])
    loader = Loader(RecordSet(rec), 2, torch.device("cpu"), num_workers=workers, train=False)
    batches = loader.epoch()
    next(batches)
    os.truncate(rec, 5000)
    with pytest.raises(BctError) as info:
        list(batches)
    said = str(info.value)
    del info, batches  # its traceback holds the loader, whose workers would end 5 s later
    assert "truncated" in said and "train.rec" in said and len(said.splitlines()) == 2


def refused(path, *words):
    with pytest.raises(BctError) as info:
        reader = RecordReader(path)
        for key in reader.keys:
            reader.read(int(key))
    assert all(word in str(info.value) for word in words), str(info.value)
    assert len(str(info.value).splitlines()) == 2


def test_missing_and_empty_files(tmp_path):
    refused(tmp_path / "none.rec", "none.rec", "does not exist")
    (tmp_path / "empty.rec").touch()
    refused(tmp_path / "empty.rec", "is empty")


def test_truncated_file_with_and_without_index(tmp_path):
    path = small(tmp_path / "a.rec")
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "a.idx", "a.rec", "truncated")
    path.with_suffix(".idx").unlink()
    refused(path, "a.rec", "offset", "truncated")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("0\t0\n1\t40\n", ["does not match", "no record starts"]),
        ("0\t0\n1\t99999\n", ["99999", "ends at"]),
        ("0\t0\n1\t18446744073709551615\n", ["does not match"]),
        ("0\t0\n0\t36\n", ["twice"]),
        ("zero\tnull\n", ["does not match", "TAB"]),
        ("", ["does not match", "two columns"]),
        ("0\t0\n1\t0\n", ["distinct"]),
    ],
)
def test_index_that_does_not_match(tmp_path, index, words):
    path = small(tmp_path / "a.rec")
    path.with_suffix(".idx").write_text(index)
    refused(path, "a.idx", *words)


def test_unknown_key_names_the_range(tmp_path):
    with pytest.raises(BctError, match="no record with key 77"):
        RecordReader(small(tmp_path / "a.rec")).read(77)


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        with RecordWriter(tmp_path / "a.rec") as writer:
            writer.write(0, Header(0.0), b"x")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        broken()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, at, value, cut):
    """One byte changed and the end cut off: nothing but a BctError, and no byte from elsewhere."""
    path = small(tmp_path_factory.mktemp("rec") / "a.rec")
    whole = bytearray(path.read_bytes())
    whole[at % len(whole)] = value
    path.write_bytes(whole[: len(whole) - cut])
    for index in (True, False):
        if not index:
            path.with_suffix(".idx").unlink()
        try:
            reader = RecordReader(path)
            for key in reader.keys:
                assert len(reader.read(int(key))[1]) <= len(whole)
            reader.heads()[0]
        except BctError as error:
            assert "a.rec" in str(error)
