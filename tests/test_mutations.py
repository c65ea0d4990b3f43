"""Hostile data: files with seeded mutations are read rightly or refused, and nothing else.

Every mutated file gives what the whole file holds, or a BctError of two lines that names it: no
other exception, no hang, no memory beyond what the file can hold. What damage cannot show is left
out on purpose: RecordIO has no checksums, so that a mutation within a record's data may change the
data, and a digit of a text file may become another one.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support.mutations import BYTES, TEXT, attempt, bounded, mutated
from support.pictures import picture

from bct.config import load_config
from bct.data.images import decode
from bct.data.record_writer import RecordWriter
from bct.data.recordio import MAGIC, Header, RecordFile, RecordReader
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import ROOT, read_json
from bct.protocols.pairs import load_bin
from bct.stored.vector_files import open_vectors
from tools.ijbc.protocol import read_protocol

MANY = 14  # times as many with `make faults`: 218,000
counts = pytest.mark.parametrize(
    "times", [1, pytest.param(MANY, marks=pytest.mark.faults)], ids=["", "many"]
)


# ---- record files


@pytest.fixture
def rec(tmp_path):
    """30 records, keys 1 ... 30; every byte of a record's data is its key."""
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        for key in range(1, 31):
            data = bytes([key]) * (8 + 5 * key % 40)
            if key % 7 == 0:  # stored in parts
                data += struct.pack("<I", MAGIC) + data[: len(data) // 4 * 4 + 4]
            writer.write(key, Header(float(key) if key % 3 else [key, 0], key), data)
    return path


def read_all(path):
    """{key: (header, data)}, after checking that every way to read agrees."""
    reader = RecordReader(path)
    records = {key: reader.read(key) for key in reader.keys.tolist()}
    firsts = [np.ravel(header.label)[0] for header, _ in records.values()]
    np.testing.assert_array_equal(reader.heads()[0], np.float32(firsts))
    return records


def scan(path):
    return list(RecordFile(path).scan())


def walk(path):
    """The stretches have to cover the file, and its whole records be readable."""
    file, at = RecordFile(path), 0
    for offset, end, wrong in file.stretches():
        assert offset == at < end
        if not wrong:
            file.read_at(offset)
        at = end
    assert at == file.size


def is_record(key, header, data):
    """By its id or, where that was hit, by its data."""
    return header.id == key or 2 * bytes(data).count(key) > len(data)


@counts
@pytest.mark.parametrize("indexed", [True, False])
def test_mutated_records(rec, indexed, times):
    """With an index and while the index is rebuilt from them."""
    whole = rec.read_bytes()
    if not indexed:
        rec.with_suffix(".idx").unlink()
    read = 0
    for data in mutated(whole, BYTES, 1500 * times, 1 + indexed):
        rec.write_bytes(data)
        attempt("a.rec", scan, rec)
        attempt("a.rec", walk, rec)
        records = attempt("a.rec", read_all, rec)
        if records is not None:
            read += 1
            assert all(is_record(key, *record) for key, record in records.items())
    assert 100 * times < read < 1400 * times  # both happen


@counts
def test_mutated_indices(rec, times):
    """Whatever an index says, a key leads to its own record or to none."""
    index = rec.with_suffix(".idx")
    whole, originals = index.read_bytes(), read_all(rec)
    read = 0
    for data in mutated(whole, TEXT, 3000 * times, 3):
        index.write_bytes(data)
        records = attempt("a.", read_all, rec)
        if records is None:
            records = one_by_one(rec)
        else:
            read += 1
        for key, (header, found) in records.items():
            original, content = originals[key]
            assert (header.id, bytes(found)) == (original.id, bytes(content))
    assert 100 * times < read < 2900 * times


@counts
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_mutated_lists(tmp_path, times, mark):
    """A list is read line by line or refused; no name leads out of the root, no class is empty."""
    for k in range(6):
        (tmp_path / str(k % 3)).mkdir(exist_ok=True)
        (tmp_path / str(k % 3) / f"{k}.jpg").write_bytes(IMAGES["JPEG"])
    path, read = tmp_path / "a.txt", 0
    lines = b"".join(b"%d/%d.jpg %d\r\n" % (k % 3, k, k % 3) for k in range(6))
    for data in mutated(mark + b"# root: .\r\n" + lines, TEXT, 600 * times, 11):
        path.write_bytes(data)
        found = attempt(r"a\.txt|\.jpg", open_images, path)
        if found is not None:
            read += 1
            assert np.unique(found.labels).tolist() == [*range(found.num_classes)]
            for index in range(len(found)):
                name = os.fsencode(found.file(index)).removeprefix(os.fsencode(tmp_path) + b"/")
                assert not name.startswith(b"/") and b".." not in name.split(b"/")
    assert 30 * times < read < 590 * times


def one_by_one(path):
    """The records that can be read although others are refused."""
    reader = attempt("a.", RecordReader, path)
    keys = reader.keys.tolist() if reader else []
    records = {key: attempt("a.rec", reader.read, key) for key in keys}
    return {key: record for key, record in records.items() if record is not None}


@pytest.mark.parametrize("word", [(1 << 29) - 1, 1 << 29 | (1 << 29) - 4, 1 << 29])
def test_a_length_is_believed_only_within_the_file(rec, word):
    data = bytearray(rec.read_bytes())
    for offset in RecordReader(rec).offsets.tolist():
        data[offset + 4 : offset + 8] = struct.pack("<I", word)
    rec.write_bytes(data)
    for read in (RecordReader, walk, scan):
        bounded(1, attempt, "a.rec", read, rec)
    with pytest.raises(BctError):
        RecordReader(rec)


def test_many_starts_with_long_records(tmp_path):
    """Every one of 20,000 records reaches over half of the file."""
    path = tmp_path / "a.rec"
    path.write_bytes(struct.pack("<II", MAGIC, 80_000) * 20_000)
    bounded(64, attempt, "a.rec", walk, path)


# ---- images


def encoded(format):
    file = io.BytesIO()
    Image.fromarray(picture(1, 2, 16)).save(file, format)
    return file.getvalue()


IMAGES = {"JPEG": simplejpeg.encode_jpeg(picture(1, 2, 16), 95)}
IMAGES |= {format: encoded(format) for format in ("PNG", "BMP", "WEBP", "PPM", "GIF")}
IMAGES["PGM in text"] = b"P2\n# drawn\n16 16\n255\n" + b" ".join(
    b"%d" % value for value in picture(1, 2, 16)[..., 0].ravel()
)


@counts
@pytest.mark.parametrize("format", IMAGES)
def test_mutated_images(format, times):
    out = np.empty((16, 16, 3), np.uint8)
    for data in mutated(IMAGES[format], BYTES, 300 * times, 4):
        for target in (None, out):
            try:
                image = decode(data, target)
            except ValueError as error:
                assert len(str(error).splitlines()) == 1, str(error)
            else:
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def announcing(format, width, height):
    """The small image with another size in its header."""
    data = bytearray(IMAGES[format])
    if format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif format == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    else:
        data = data.replace(b"16 16", b"%d %d" % (width, height), 1)
    return bytes(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "PPM", "PGM in text"])
@pytest.mark.parametrize("size", [(65_500, 65_500), (65_535, 65_535), (12_000, 12_000)])
def test_announced_sizes_are_not_believed(format, size, tmp_path):
    data = announcing(format, *size)
    for out in (None, np.empty((112, 112, 3), np.uint8)):
        with pytest.raises(ValueError):
            bounded(16, decode, data, out)
    (tmp_path / "a.bin").write_bytes(pickle.dumps(([data, data], [True])))
    with pytest.raises(BctError, match=r"a\.bin: image 0 is broken"):
        bounded(16, load_bin, tmp_path / "a.bin")


# ---- verification sets


def pairs():
    images = [simplejpeg.encode_jpeg(picture(i // 2, i, 16), 90) for i in range(4)]
    images[2] = np.frombuffer(images[2], np.uint8)
    images[3] = bytearray(images[3])
    return images, [True, np.bool_(False)]


@counts
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_mutated_verification_sets(tmp_path, protocol, times):
    path = tmp_path / "a.bin"
    read = 0
    for data in mutated(pickle.dumps(pairs(), protocol), BYTES, 600 * times, 5 + protocol):
        path.write_bytes(data)
        found = attempt("a.bin", load_bin, path, 16)
        if found is not None:
            read += 1
            assert found.images.shape == (2 * len(found.issame), 16, 16, 3)
            assert found.issame.dtype == bool and len(found.issame) > 0
    assert read < 590 * times


def built(shape, content):
    """A pickle that has numpy build an array of a shape from some bytes."""
    kind = b"cnumpy\ndtype\n(Vu1\nI00\nI01\ntR"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
    state = b"(I1\n(" + b"".join(b"L%dL\n" % n for n in shape) + b"t" + kind + b"I00\n"
    return b"(l" + start + state + pickle.dumps(content, 0)[:-1] + b"tb" + b"aI1\n."


BOMBS = {
    "array of 1 TiB": b"cnumpy\nndarray\n(L1099511627776L\ntR.",
    "reconstructed 1 TiB": b"cnumpy.core.multiarray\n_reconstruct\n"
    b"(cnumpy\nndarray\n(L1099511627776L\ntVb\ntR.",
    "state of 1 TiB": built([1 << 40], "abc"),
    "state of 2^120": built([1 << 60, 1 << 60], "abc"),
    "string type of 2 GiB": b"cnumpy.core.multiarray\nscalar\n"
    b"(cnumpy\ndtype\n(VS2147483647\nI00\nI01\ntRtR.",
    "memo of 16 GiB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo in text": b"(lp2147483647\n.",
    "bytes of 1 TiB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
    "bytes of 2^63": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"abc.",
    "byte array of 1 TiB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "byte array of 2^63": b"\x80\x05\x96" + struct.pack("<Q", 1 << 63) + b"abc.",
    "bytearray(1 TiB)": b"cbuiltins\nbytearray\n(L1099511627776L\ntR.",
    "buffer of 1 TiB": b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n(Vu1\n"
    b"\x89\x88tR(L1099511627776L\ntVC\ntR.",
    "buffer outside": b"\x80\x05]\x97\x98a.",
    "array of an array": b"cnumpy._core.numeric\n_frombuffer\n(" + b"cnumpy\nndarray\n)R"
    + b"cnumpy\ndtype\n(Vu1\n\x89\x88tRI0\nVC\ntR.",
    "frame of 1 TiB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].",
    "many tuples deep": b")" + b"\x85" * 200_000 + b".",
    "a deep hash": b"}" + b")" + b"\x85" * 200_000 + b"I1\ns.",
    "doubled lists": b"(((l" + b"p0\n(g0\ng0\nl" * 60 + b"tl.",
    "one image 200,000 times": b"\x80\x02](B"
    + struct.pack("<I", len(IMAGES["JPEG"])) + IMAGES["JPEG"] + b"q\x01"
    + b"h\x01" * 199_999 + b"e](" + b"\x88" * 100_000 + b"e\x86.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_bombs(name, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(BOMBS[name])
    with pytest.raises(BctError, match=r"a\.bin"):
        bounded(64, load_bin, path)


@pytest.mark.parametrize(
    ("images", "flags", "words"),
    [
        (["text", "text"], [True], "image 0 is broken .a str instead"),
        ([b"", b""], [True], "image 0 is broken"),
        ([np.zeros(3, np.float64)] * 2, [True], "image 0 is broken .a ndarray instead"),
        ([encoded("PNG")] * 2, [None], "flag 0 says neither"),
        ([encoded("PNG")] * 2, [2], "flag 0 says neither"),
        ([encoded("PNG")] * 2, [b"\0"], "flag 0 says neither"),
        ([simplejpeg.encode_jpeg(np.zeros((3, 2000, 3), np.uint8))] * 2, [True], "no picture"),
    ],
)
def test_entries_of_a_wrong_kind(images, flags, words, tmp_path):
    (tmp_path / "a.bin").write_bytes(pickle.dumps((images, flags)))
    with pytest.raises(BctError, match=words):
        load_bin(tmp_path / "a.bin")


# ---- meta files of IJB

META = {
    "ijbc_name_5pts_score.txt": 700,
    "ijbc_face_tid_mid.txt": 500,
    "ijbc_template_pair_label.txt": 500,
    "ijbc_1N_gallery_G1.csv": 400,
    "ijbc_1N_probe_mixed.csv": 400,
}


@counts
@pytest.mark.parametrize("name", META)
def test_mutated_meta_files(ijb, name, times):
    file = ijb / "meta" / name
    whole, original = file.read_bytes(), read_protocol(ijb)
    read = 0
    for data in mutated(whole, TEXT, META[name] * times, 6):
        file.write_bytes(data)
        protocol = attempt("ijbc_|gallery_G", read_protocol, ijb)
        if not protocol:
            continue
        read += 1
        assert protocol.images.names == original.images.names
        counts = protocol.templates.images
        assert np.isfinite(protocol.images.landmarks[counts]).all()
        assert np.isfinite(protocol.templates.weight[counts]).all()
        first, second, genuine = protocol.pairs
        assert len(first) == len(second) == len(genuine)
        for rows in (first, second, protocol.probes.rows, *(g.rows for g in protocol.galleries)):
            assert rows.min() >= 0 and rows.max() < protocol.items
    assert 0 < read < META[name] * times


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/passwd", "a/../../1.jpg", "..", "a\0.jpg"])
def test_names_stay_in_their_folder(ijb, name):
    for file in ("ijbc_name_5pts_score.txt", "ijbc_face_tid_mid.txt"):
        path = ijb / "meta" / file
        lines = path.read_text().splitlines()
        lines[4] = name + lines[4][lines[4].index(" ") :]
        path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BctError, match=r"ijbc_name_5pts_score\.txt, line 5: .* loose_crop"):
        read_protocol(ijb)


def test_links_stay_in_their_folder(ijb, tmp_path):
    crops = ijb / "loose_crop"
    (tmp_path / "secret").write_bytes(b"x")
    (crops / "3.jpg").unlink()
    (crops / "3.jpg").symlink_to(tmp_path / "secret")
    (crops / "4.jpg").unlink()
    (crops / "4.jpg").symlink_to("5.jpg")
    protocol = read_protocol(ijb)
    assert protocol.images.file(4).is_file()
    with pytest.raises(BctError, match=r"5pts_score\.txt, line 4: 3\.jpg is a link out of"):
        protocol.images.file(3)
    crops.rename(tmp_path / "elsewhere")
    crops.symlink_to(tmp_path / "elsewhere")  # the whole folder on another disk
    assert read_protocol(ijb).images.file(4).is_file()


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("name_5pts_score.txt", (b"0.9\n", b"nan\n"), "line 1: its detection score is nan"),
        ("name_5pts_score.txt", (b"0.jpg ", b"0.jpg nan"), "line 1: 'nan[0-9.]*' is not a number"),
        ("name_5pts_score.txt", (b"0.9\n", b"1_0\n"), "line 1: '1_0' is not a number"),
        ("name_5pts_score.txt", (b"0.9\n", b"1e300\n"), "line 1: '1e300' is not a number"),
        ("name_5pts_score.txt", (b"0.jpg", b"\xff.jpg"), "line 1: .*not UTF-8"),
        ("face_tid_mid.txt", (b" 0\n", b" 0.5\n"), "line 1: '0.5' is not an integer"),
        ("face_tid_mid.txt", (b" 0\n", b" 9999999999999999999\n"), "line 1: .*not an integer"),
        ("template_pair_label.txt", (b" 1\n", b" 2\n"), "label 2 is neither 0 nor 1"),
        ("template_pair_label.txt", (b" 1\n", b" 1.5\n"), "bad row"),
        ("template_pair_label.txt", (b" 1\n", b" 1#\n"), "bad row"),
        ("1N_gallery_G1.csv", (b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n", b""), "columns' names"),
        ("1N_gallery_G1.csv", (b"10,1,", b"10,2,"), "gives template 10 to two subjects"),
    ],
)
def test_meta_rows_that_numpy_or_python_would_take(ijb, file, change, words):
    path = ijb / "meta" / f"ijbc_{file}"
    data = path.read_bytes()
    assert change[0] in data
    path.write_bytes(data.replace(*change, 1))
    with pytest.raises(BctError, match=words):
        read_protocol(ijb)


# ---- stored embeddings, sidecars, configs


@counts
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_mutated_embeddings(tmp_path, suffix, times):
    path = tmp_path / f"a{suffix}"
    array = np.arange(40, dtype=np.float32).reshape(10, 4)
    (np.save if suffix == ".npy" else np.savez_compressed)(path, array)
    for data in mutated(path.read_bytes(), TEXT, 1000 * times, 7):
        path.write_bytes(data)
        found = attempt(f"a{suffix}", open_vectors, path, 10)
        found = None if found is None else found[0]
        if found is not None:
            assert found.shape[0] == 10 and found.nbytes == array.nbytes
            assert np.isfinite(found).all()


@pytest.mark.parametrize("shape", [(10, 1 << 40), (10, 3), (10, 5), (1 << 62, 1 << 62), (10, -4)])
@pytest.mark.parametrize("packed", [False, True])
def test_shapes_that_are_not_the_files(tmp_path, shape, packed):
    path = tmp_path / ("a.npz" if packed else "a.npy")
    (np.savez if packed else np.save)(path, np.ones((10, 4)))
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    content = file.getvalue() + np.ones((10, 4)).tobytes()
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(BctError, match=r"a\.np. "):
        bounded(64, open_vectors, path, 10)


SIDECAR = {"rows": 3, "dim": None, "dtype": "float32", "weights": "a/b.pt", "list": [1, -2.5, "x"]}


@counts
def test_mutated_json(tmp_path, times):
    path = tmp_path / "a.json"
    for data in mutated(json.dumps(SIDECAR, indent=2).encode(), TEXT, 1500 * times, 8):
        path.write_bytes(data)
        attempt("a.json", read_json, path)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b"\xff", b"9" * 10_000, b"\0", b""],
)
def test_json_that_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BctError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


BASE = ROOT / "configs/base.py"
OVERRIDES = (
    b"lr=0.05 batch_size=64 decay_epoch=[1,2] network=r18 rec=~/a/b scenario=OPclass fp16=true "
    b"rec_val=None momentum=9e-1 val_targets=['lfw','cfp'] margin_list=(1.0,0.5,0.0) amp=off"
).split()


@counts
def test_mutated_overrides(times):
    """Refused or a value of the right kind; nothing else comes of a damaged argument."""
    for i, override in enumerate(OVERRIDES):
        for data in mutated(override, TEXT, 50 * times, (9, i)):
            attempt(
                "argument|command line|[a-z_]+ = |config",
                load_config,
                BASE,
                [data.decode("latin1")],
            )


@pytest.mark.parametrize(
    "override",
    ["lr=" + "(" * 100_000, "lr=" + "-" * 100_000 + "1", "lr={[1]: 2}", "rec=~nobody-here/x",
     "rec=~\0", "lr=\0", "lr=" + "9" * 10_000, "lr=1\n2"],
)  # fmt: skip
def test_overrides_that_python_fails_on(override):
    attempt("command line", load_config, BASE, [override])


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 50, b"\xff\xfe\xfa", b"\x89PNG\r\n\x1a\n", b"config = (", b"config = 5",
     b"(" * 10_000, b"raise ValueError('two\\nlines')", b"import nothing_of_this_name",
     b"config = {}[1]"],
)  # fmt: skip
def test_content_that_is_no_config(tmp_path, content):
    (tmp_path / "a.py").write_bytes(content)
    with pytest.raises(BctError) as info:
        load_config(tmp_path / "a.py")
    assert "a.py" in info.value.what and len(str(info.value).splitlines()) == 2
