"""tools/check_rec.py: good files pass, every kind of damage is found, a repair loses no more."""

import struct
import sys

import numpy as np
import pytest
from support.pictures import jpeg, write_faces

from bct.data.record_writer import RecordWriter
from bct.data.recordio import MAGIC, Header, RecordReader
from bct.errors import BctError
from tools import check_rec

COUNTS = [3, 2, 4]  # images of each identity: keys 1 ... 9


@pytest.fixture
def rec(tmp_path):
    return write_faces(tmp_path / "train.rec", COUNTS)


def check(rec, monkeypatch, capsys, *options):
    """Exit code and what was printed."""
    monkeypatch.setattr(sys, "argv", ["check_rec.py", str(rec), "-j", "1", *options])
    try:
        check_rec.main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def patch(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("layout", ["insightface", "flat", "no index"])
def test_good_files(rec, layout, monkeypatch, capsys):
    if layout == "flat":
        rec = write_faces(rec, COUNTS, header=False, array=False)
    if layout == "no index":
        rec.with_suffix(".idx").unlink()
    code, out = check(rec, monkeypatch, capsys)
    assert code == 0 and "problems       none" in out
    assert "images         9\n" in out and "labels         3\n" in out


def test_real_file_in_several_processes(shared, monkeypatch, capsys):
    rec = shared / "data/recordio_samples/recordio_adaface_im2rec/train.rec"
    assert check(rec, monkeypatch, capsys, "-j", "2")[0] == 0
    rec = shared / "data/recordio_samples/recordio_detection_flag9/train.rec"
    code, out = check(rec, monkeypatch, capsys, "-j", "2", "--max-problems", "2")
    assert code == 1 and "image: 780x438, but most images are 1920x800" in out
    assert "... and 8 more" in out and len(out.splitlines()) == 10


DAMAGES = {  # what is done to (path, offsets by key, index lines) and what is to be said of it
    "magic": (
        lambda p, at, lines: patch(p, at[4], b"\0"),
        [
            "offset {4}: ",
            "bytes are broken (no record starts there)",
            "key 4, offset {4}: no whole",
        ],
    ),
    "length too large": (
        lambda p, at, lines: patch(p, at[4] + 4, struct.pack("<I", at[6] - at[4] + 50)),
        ["offset {4}: ", "another record starts within it"],
    ),
    "length too small": (
        lambda p, at, lines: patch(p, at[4] + 4, struct.pack("<I", 100)),
        ["bytes are broken (no record starts there)", "key 4, offset {4}: image: "],
    ),
    "huge length": (
        lambda p, at, lines: patch(p, at[4] + 4, struct.pack("<I", (1 << 29) - 1)),
        ["offset {4}: ", "runs past the end", "key 4, offset {4}: no whole record"],
    ),
    "flag without room": (
        lambda p, at, lines: patch(p, at[4] + 8, struct.pack("<I", 2**32 - 1)),
        ["offset {4}: ", "no room for its 4294967295 labels"],
    ),
    "truncated": (
        lambda p, at, lines: p.write_bytes(p.read_bytes()[: at[9] + 50]),
        ["offset {9}: ", "the file is truncated", "key 9, offset {9}: no whole record"],
    ),
    "image": (
        lambda p, at, lines: patch(p, at[4] + 40, b"\0" * 300),
        ["key 4, offset {4}: image: "],
    ),
    "label gap": (
        lambda p, at, lines: patch(p, at[9] + 32, struct.pack("<f", 7)),
        ["4 of the labels 0 ... 7 have no image, e.g. 3", "does not fit 8 classes"],
    ),
    "label": (
        lambda p, at, lines: patch(p, at[9] + 32, struct.pack("<f", np.nan)),
        ["key 9, offset {9}: label nan is not"],
    ),
    "header counts": (
        lambda p, at, lines: patch(p, at[0] + 32, struct.pack("<ff", 9, 14)),
        ["key 0, offset 0: the header promises 8 images, there are 9", "14, does not fit 3"],
    ),
    "id": (
        lambda p, at, lines: patch(p, at[4] + 16, struct.pack("<Q", 77)),
        ["key 4, offset {4}: the record there says that its key is 77"],
    ),
    "missing entry": (
        lambda p, at, lines: lines.pop(4),
        ["offset {4}: the index has no entry for this record, id 4", "key 4: 1 keys from 1 on"],
    ),
    "swapped keys": (
        lambda p, at, lines: lines.__setitem__(slice(4, 6), [f"5\t{at[4]}\n", f"4\t{at[5]}\n"]),
        ["key 5, offset {4}: the record there says that its key is 4", "key 4, offset {5}: "],
    ),
    "repeated line": (
        lambda p, at, lines: lines.append(lines[4]),
        ["key 4, offset {4}: the index has this key more than once", "this offset more than once"],
    ),
    "no index at all": (
        lambda p, at, lines: lines.append("four\tfive\n"),
        ["it has lines that are not `key<TAB>offset`"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_repaired(rec, name, monkeypatch, capsys):
    index, original = rec.with_suffix(".idx"), RecordReader(rec)
    at = dict(zip(original.keys.tolist(), original.offsets.tolist(), strict=True))
    content = {key: bytes(original.read(key)[1]) for key in at}
    lines = index.read_text().splitlines(keepends=True)
    damage, words = DAMAGES[name]
    damage(rec, at, lines)
    index.write_text("".join(lines))
    code, out = check(rec, monkeypatch, capsys)
    assert code == 1
    for word in words:
        assert word.format(*(at[key] for key in range(10))) in out, out

    damaged, old_index = rec.read_bytes(), index.read_bytes()
    code, out = check(rec, monkeypatch, capsys, "--repair", "--no-decode")
    assert "records; lost: " in out
    assert rec.read_bytes() == damaged
    assert index.with_name("train.idx.bak").read_bytes() == old_index
    repaired = RecordReader(rec)
    touched = {"truncated": {9, 10, 11, 12}}.get(name, {0, 4, 9})
    assert set(at) - touched <= set(repaired.keys.tolist())
    for key in set(at) - touched:
        assert bytes(repaired.read(key)[1]) == content[key]


def test_resynchronising_across_several_broken_records(rec, monkeypatch, capsys):
    reader = RecordReader(rec)
    start, end = reader.offset(3), reader.offset(6)
    patch(rec, start, np.random.default_rng(0).bytes(end - start - 8))
    patch(rec, start + 16, struct.pack("<II", MAGIC, 40))  # a start that is none
    code, out = check(rec, monkeypatch, capsys, "--repair", "--no-decode")
    assert code == 1 and f"10 records; lost: 1 broken stretches, {end - start:,} bytes" in out
    assert RecordReader(rec).keys.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11, 12]


def test_an_existing_backup_stays(rec, monkeypatch, capsys):
    patch(rec, RecordReader(rec).offset(4), b"\0")
    index, backup = rec.with_suffix(".idx"), rec.with_name("train.idx.bak")
    before = index.read_bytes()
    backup.write_text("mine")
    with pytest.raises(BctError, match=r"train\.idx\.bak exists already"):
        check(rec, monkeypatch, capsys, "--repair")
    assert backup.read_text() == "mine" and index.read_bytes() == before


def test_keys_that_only_the_old_index_knows(tmp_path, monkeypatch, capsys):
    """Ids are all 0: after damage positions would be other keys than before."""
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        for key in range(5):
            writer.write(10 + key, Header(float(key)), jpeg(key, 0))
    first = RecordReader(path).offset(10)
    patch(path, first + 4, struct.pack("<I", (1 << 29) - 1))
    index = path.with_suffix(".idx")
    lines = index.read_text()
    index.unlink()
    with pytest.raises(BctError, match="do not say what their keys were"):
        check(path, monkeypatch, capsys, "--repair")
    index.write_text(lines)
    assert check(path, monkeypatch, capsys, "--repair")[0] == 1
    reader = RecordReader(path)
    assert reader.keys.tolist() == [11, 12, 13, 14]
    assert [int(reader.read(key)[0].label) for key in reader.keys.tolist()] == [1, 2, 3, 4]


def test_of_two_records_with_one_id_each_keeps_its_key(rec, monkeypatch, capsys):
    reader = RecordReader(rec)
    offset = reader.offset(4)
    patch(rec, offset + 16, struct.pack("<Q", 6))
    code, out = check(rec, monkeypatch, capsys, "--no-decode")
    assert code == 1 and f"key 4, offset {offset}: the record there says that its key is 6" in out
    before = rec.with_suffix(".idx").read_bytes()
    check(rec, monkeypatch, capsys, "--no-decode", "--repair")
    assert sorted(rec.with_suffix(".idx").read_bytes().split()) == sorted(before.split())
    assert RecordReader(rec).offset(4) == offset


def test_bad_arguments(rec, tmp_path, monkeypatch, capsys):
    for options in (["-j", "0"], ["--max-problems", "-1"]):
        assert check(rec, monkeypatch, capsys, *options) == (2, "")
    with pytest.raises(BctError, match=r"is a folder, not a record file\n.*train\.rec"):
        check(tmp_path, monkeypatch, capsys)
    (tmp_path / "junk.rec").write_bytes(b"junk" * 100)
    with pytest.raises(BctError, match="holds no whole record"):
        check(tmp_path / "junk.rec", monkeypatch, capsys)
