"""tools/convert.py: its files as readers of the formats' own see them, and what it refuses."""

import pickle
import struct

import numpy as np
import pytest
from support.killed import kills
from support.pictures import jpeg, write_faces
from support.script import run_script

from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header
from bct.data.sets import FolderSet, RecordSet, open_images
from bct.errors import BctError
from bct.files import sha256_file
from bct.protocols.pairs import load_bin
from tools import convert


def records_of(path):
    """(key, flag, label, id, data) of every record, in the index's order; nothing of ours is used.
    No payload of these tests holds the magic."""
    data, found = path.read_bytes(), []
    for line in path.with_suffix(".idx").read_text().splitlines():
        key, at = map(int, line.split("\t"))
        magic, length = struct.unpack_from("<II", data, at)
        assert magic == 0xCED7230A and at % 4 == 0
        flag, label, number, _ = struct.unpack_from("<IfQQ", data, at + 8)
        found.append((key, flag, label, number, data[at + 8 + 24 + 4 * flag : at + 8 + length]))
    return found


def run(*words, code=0, says=""):
    done = run_script("tools/convert.py", *words)
    assert done.returncode == code, done.stderr
    if code:
        assert len(done.stderr.splitlines()) == 2 and says in done.stderr, done.stderr
    else:
        assert says in done.stdout, done.stdout
    return done


def refused(says, function, *arguments):
    with pytest.raises(BctError) as info:
        function(*arguments)
    assert says in str(info.value) and len(str(info.value).splitlines()) == 2, str(info.value)


def contents(folder):
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def faces(tmp_path):
    """insightface's layout: 3 identities, array labels, property, a .bin that is not copied."""
    folder = tmp_path / "faces"
    folder.mkdir()
    write_faces(folder / "train.rec", [3, 1, 4])
    (folder / "property").write_text("3,112,112\n")
    (folder / "lfw.bin").write_bytes(b"x")
    return folder


def test_shuffle(faces, tmp_path):
    done = run("shuffle", faces, tmp_path / "out", "--seed", 4, says="8 images in the order of")
    assert "not copied: lfw.bin" in done.stdout
    found = records_of(tmp_path / "out" / "train.rec")
    assert [row[:2] + row[3:4] for row in found] == [(k, 0, k) for k in range(8)]
    before = RecordSet(faces / "train.rec")
    wanted = [(float(before.labels[k]), bytes(before.payload(k)[0])) for k in range(8)]
    got = [(row[2], row[4]) for row in found]
    assert sorted(got) == sorted(wanted) and got != wanted
    assert (tmp_path / "out" / "property").read_bytes() == b"3,112,112\n"
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "property", "train.idx", "train.json", "train.rec"]  # fmt: skip
    assert (
        len(open_images(tmp_path / "out")) == 8 and open_images(tmp_path / "out").num_classes == 3
    )
    before = contents(tmp_path / "out")
    run("shuffle", faces / "train.rec", tmp_path / "out", "--seed", 4, says="up to date")
    run("shuffle", faces, tmp_path / "out", "--seed", 5, code=1, says="was not made in this way")
    run("shuffle", faces, faces, code=1, says="replaced by itself")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("array", [False, True])
def test_the_order_does_not_depend_on_the_buckets(tmp_path, array):
    write_faces(tmp_path / "train.rec", [5, 9, 7, 2], header=array, array=array)
    size = (tmp_path / "train.rec").stat().st_size
    for k, bucket in enumerate((1 << 28, size // 5, size // 23, 1)):
        convert.shuffle(tmp_path / "train.rec", tmp_path / str(k), 7, bucket)
    files = {(tmp_path / str(k) / "train.rec").read_bytes() for k in range(4)}
    assert len(files) == 1
    order = np.random.default_rng([7, 23]).permutation(23)  # image i gets place order[i]
    before, found = RecordSet(tmp_path / "train.rec"), records_of(tmp_path / "0" / "train.rec")
    assert all(found[order[i]][4] == bytes(before.payload(i)[0]) for i in range(23))


def test_a_killed_shuffle_leaves_nothing_and_works_again(faces, tmp_path):
    out = tmp_path / "out"
    convert.shuffle(faces, out, 1)
    whole, killed = contents(out), 0
    clear(out)
    for _ in kills(lambda: convert.shuffle(faces, out, 1)):
        killed += 1
        if (out / "train.rec").exists():
            assert contents(out) == whole
        convert.shuffle(faces, out, 1)
        assert contents(out) == whole
        clear(out)
    assert killed > 15 and contents(out) == whole


def clear(folder):
    for file in folder.iterdir():
        file.unlink()


def test_a_foreign_file_is_not_replaced(faces, tmp_path):
    for name in ("train.rec", "train.idx", "train.json", "property"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine\n")
        refused("exists and was not made", convert.shuffle, faces, out, 0)
        assert contents(out).keys() == {name} and (out / name).read_text() == "mine\n"


def test_an_empty_record_is_not_shuffled(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, Header([4, 2]), b"")
        for key in (1, 2, 3):
            writer.write(key, Header(float(key % 2), key), jpeg(0, 0) if key < 3 else b"")
    refused("it has no data", convert.shuffle, tmp_path / "a.rec", tmp_path / "out", 0)
    assert not (tmp_path / "out" / "train.rec").exists()


def test_rec_to_folder_and_back(faces, tmp_path):
    run("rec-to-folder", faces, tmp_path / "out", says="8 images, 3 classes")
    before, found = RecordSet(faces / "train.rec"), FolderSet(tmp_path / "out")
    assert found.class_names == ["0", "1", "2"]
    assert [found.payload(k) for k in range(8)] == [
        (bytes(before.payload(k)[0]), before.labels[k]) for k in range(8)
    ]
    assert found.names.tolist()[:2] == [b"0/01.jpg", b"0/02.jpg"]
    run("rec-to-folder", faces / "train.rec", tmp_path / "out", says="up to date")
    write_faces(faces / "train.rec", [3, 1, 5])
    run("rec-to-folder", faces, tmp_path / "out", code=1, says="was not made in this way")
    run("folder-to-rec", tmp_path / "out", tmp_path / "packed", says="8 images, 3 identities")
    (tmp_path / "packed" / "identities.txt").write_bytes(b"b\xff\na c\nz\n")
    run("rec-to-folder", tmp_path / "packed", tmp_path / "named", says="the order of the names")
    names = sorted(p.name for p in (tmp_path / "named").iterdir() if p.is_dir())
    assert names == ["a c", "b\udcff", "z"]
    for bad in (b"a\nb\n", b"a\nb\n../c\n", b"a\nb\nb\n", b"a\n\nb\n"):
        (tmp_path / "packed" / "identities.txt").write_bytes(bad)
        refused("does not name the 3", convert.rec_to_folder, tmp_path / "packed", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_folder_to_rec_is_the_old_command(faces, tmp_path):
    convert.rec_to_folder(faces, tmp_path / "folder")
    run("folder-to-rec", tmp_path / "folder", tmp_path / "a")
    done = run_script("tools/folder_to_rec.py", tmp_path / "folder", tmp_path / "b")
    assert done.returncode == 0 and contents(tmp_path / "a") == contents(tmp_path / "b")


def test_lst_to_rec(tmp_path):
    rows = [(7, 1, "b/x y.jpg"), (2, 0, "a/1.jpg"), (0, 1, "b/2.jpg")]
    for k, (_, label, name) in enumerate(rows):
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(label, k, 90 + k))
    text = "".join(f"{key}\t{label:f}\t{name}\n" for key, label, name in rows)
    (tmp_path / "x.lst").write_text(text)
    words = ("lst-to-rec", tmp_path / "x.lst", tmp_path / "x.rec")
    run(*words, code=1, says="its first image")
    run(*words, "--root", tmp_path / "root", says="3 images, 2 classes")
    wanted = [(k, 0, float(c), k, (tmp_path / "root" / n).read_bytes()) for k, c, n in rows]
    assert records_of(tmp_path / "x.rec") == wanted
    run(*words, "--root", tmp_path / "root", says="up to date")
    assert RecordSet(tmp_path / "x.rec").labels.tolist() == [1, 0, 1]
    (tmp_path / "x.lst").write_text(text + "2\t0.0\ta/1.jpg\n")
    refused("2 lines have the index 2", convert.lst_to_rec, tmp_path / "x.lst",
            tmp_path / "y.rec", tmp_path / "root")  # fmt: skip
    (tmp_path / "x.lst").write_text(text)
    (tmp_path / "root" / "a" / "1.jpg").write_bytes(b"no image")
    refused("is broken", convert.lst_to_rec, tmp_path / "x.lst", tmp_path / "y.rec",
            tmp_path / "root")  # fmt: skip
    refused("that ends in .rec", convert.lst_to_rec, tmp_path / "x.lst", tmp_path / "y", None)
    assert not (tmp_path / "y.rec").exists()


def test_pairs_and_back(tmp_path):
    for name, k in (("a b.jpg", 0), ("c.jpg", 1), ("d.jpg", 2)):
        (tmp_path / name).write_bytes(jpeg(k % 2, k))
    lines = ["a b.jpg\td.jpg\t1", "c.jpg d.jpg 0", "", "a b.jpg\tc.jpg\t0\r"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    words = ("pairs", tmp_path / "pairs.txt", tmp_path / "x.bin")
    run(*words, code=1, says="line 1: 'a b.jpg' can't be used (No such file")
    run(*words, "--root", tmp_path, says="3 pairs, 1 of them genuine")
    images, same = pickle.loads((tmp_path / "x.bin").read_bytes(), encoding="bytes")
    a, c, d = ((tmp_path / name).read_bytes() for name in ("a b.jpg", "c.jpg", "d.jpg"))
    assert images == [a, d, c, d, a, c] and same == [True, False, False]
    assert all(type(flag) is bool for flag in same)
    found = load_bin(tmp_path / "x.bin")
    assert found.issame.tolist() == same and np.array_equal(found.images[1], found.images[3])
    run(*words, "--root", tmp_path, says="up to date")

    run("bin-to-folder", tmp_path / "x.bin", tmp_path / "out", says="3 pairs")
    assert (tmp_path / "out" / "3.jpg").read_bytes() == d
    again = (tmp_path / "out" / "pairs.txt", tmp_path / "y.bin", tmp_path / "out")
    convert.pairs(*again)
    assert (tmp_path / "y.bin").read_bytes() == (tmp_path / "x.bin").read_bytes()
    run("bin-to-folder", tmp_path / "x.bin", tmp_path / "out", says="up to date")
    (tmp_path / "z.bin").write_bytes(pickle.dumps(([np.frombuffer(a, np.uint8), c], [1])))
    refused("was not made", convert.bin_to_folder, tmp_path / "z.bin", tmp_path / "out")
    convert.bin_to_folder(tmp_path / "z.bin", tmp_path / "z")  # rows of uint8, as cv2 makes them
    assert (tmp_path / "z" / "0.jpg").read_bytes() == a
    (tmp_path / "y.bin").write_bytes(b"mine")
    refused("is another set", convert.pairs, *again)


def test_bad_pairs_are_refused(tmp_path):
    (tmp_path / "c.jpg").write_bytes(jpeg(0, 0))
    (tmp_path / "broken.jpg").write_bytes(b"no")
    for text, says in (
        (b"", "names no pair"),
        (b"c.jpg c.jpg", "line 1 is not <path>"),
        (b"c.jpg c.jpg 0\nc.jpg c.jpg 2", "line 2 is not <path>"),
        (b"c.jpg d e.jpg 1", "line 1 is not <path>"),
        (b"c.jpg\t\t1", "line 1 is not <path>"),
        (b"c.jpg c\0.jpg 1", "line 1 is not <path>"),
        (b"c.jpg broken.jpg 1", "line 1: "),
        (b"c.jpg .. 1", "Is a directory"),
        ("c.jpg c.jpg 1".encode("utf-16"), "UTF-16"),
    ):
        (tmp_path / "p.txt").write_bytes(text)
        refused(says, convert.pairs, tmp_path / "p.txt", tmp_path / "p.bin", tmp_path)
    refused("no file", convert.pairs, tmp_path / "none", tmp_path / "p.bin", None)
    refused("ends in .bin", convert.pairs, tmp_path / "p.txt", tmp_path / "p", None)
    assert not (tmp_path / "p.bin").exists()


def test_help_and_nonsense(tmp_path):
    assert "convert.py pairs [-h] [--root ROOT]" in run("pairs", "-h").stdout
    for words in ((), ("nonsense",), ("shuffle",), ("shuffle", "a", "b", "--seed", "-1")):
        done = run_script("tools/convert.py", *words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 2, done.stderr
    run("shuffle", tmp_path / "none", tmp_path / "out", code=1, says="does not exist")
    assert not (tmp_path / "out").exists()
