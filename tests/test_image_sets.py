"""Image folders, lists and CIFAR: what torchvision reads from them, or two lines why not."""

import contextlib
import os
import pickle
import re
import socket
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.cifar import write_cifar
from support.pictures import picture, write_faces
from torchvision import datasets as reference

from bct.data.image_lists import list_text, read_list
from bct.data.sets import FolderSet, RecordSet, open_images
from bct.errors import BctError
from bct.files import sha256, write_json
from bct.safe.dicts import load_dict
from tools.unpack import find_zips, unpack


def refused(word, function, *arguments):
    with pytest.raises(BctError) as info:
        function(*arguments)
    assert len(str(info.value).splitlines()) == 2, str(info.value)
    assert word in str(info.value), str(info.value)


def save(path, identity=0, variant=0, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(identity, variant, max(size))[: size[0], : size[1]]).save(path)


@pytest.fixture
def folder(tmp_path):
    """train/ with 3 classes of 2, 1 and 3 images of different sizes."""
    for label, (name, count) in enumerate((("10", 2), ("2 b", 1), ("ant", 3))):
        for k in range(count):
            save(tmp_path / "train" / name / f"{k} x.png", label, k, (8 + k, 6 + label))
    return tmp_path / "train"


def test_a_folder_is_torchvisions(folder):
    ours, theirs = open_images(folder), reference.ImageFolder(folder)
    assert ours.class_names == theirs.classes and ours.num_classes == 3
    assert ours.labels.tolist() == theirs.targets and ours.labels.dtype == np.int64
    for k, (file, _) in enumerate(theirs.samples):
        assert ours.describe(k) == file
        want = np.asarray(theirs[k][0])
        assert ours.image(k).dtype == np.uint8 and np.array_equal(ours.image(k), want)
        out = np.zeros(want.shape, np.uint8)
        assert ours.load(k, out) == theirs.targets[k] and np.array_equal(out, want)
    refused("not 5x5", ours.load, 0, np.zeros((5, 5, 3), np.uint8))


def test_of_a_folder_the_training_set_is_opened(folder):
    assert isinstance(open_images(folder.parent), FolderSet)
    assert open_images(folder.parent).path == folder
    save(folder / "train" / "0.png")  # CIFAR-100 has a class of this name
    assert open_images(folder).class_names == ["10", "2 b", "ant", "train"]


def test_layouts(tmp_path):
    for name in ("Greek/c01/1.png", "Greek/c02/1.png", "Greek 2/c01/1.png", "Greek/.x/1.png"):
        save(tmp_path / "omniglot" / name)
    found = open_images(tmp_path / "omniglot")
    assert found.class_names == ["Greek 2/c01", "Greek/c01", "Greek/c02"]
    tiny = tmp_path / "tiny"
    for wnid in ("n01", "n02", "n03"):
        save(tiny / f"train/{wnid}/images/{wnid}_0.JPEG")
        (tiny / f"train/{wnid}/{wnid}_boxes.txt").write_text("0 0 1 1\n")
    for k in range(3):
        save(tiny / f"val/images/val_{k}.JPEG", variant=k)
    lines = [f"val_{k}.JPEG\t{wnid}\t0\t0\t1\t1" for k, wnid in enumerate(("n03", "n01", "n02"))]
    (tiny / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    train, val = open_images(tiny), open_images(tiny / "val")
    assert train.class_names == val.class_names == ["n01", "n02", "n03"]
    assert val.labels.tolist() == [2, 0, 1] and train.labels.tolist() == [0, 1, 2]
    assert val.describe(1).endswith("val/images/val_1.JPEG") and val.image(2).shape == (9, 7, 3)
    (tiny / "val/val_annotations.txt").write_text(lines[0] + "\nval_1.JPEG n01\n")
    refused("val_annotations.txt, line 2 is not", open_images, tiny / "val")


def test_omniglot(shared, tmp_path):
    """Latin is in both zips, and Greek: they hold 242 characters, not 292."""
    parts, characters = [], set()
    for zip_file in find_zips(shared / "data/omniglot_small"):
        with zipfile.ZipFile(zip_file) as archive:
            images = [name for name in archive.namelist() if name.endswith(".png")]
            characters |= {name.split("/", 1)[1].rsplit("/", 1)[0] for name in images}
            few = {name: archive.read(name) for name in images if "/character01/" in name}
        parts.append(zipped(tmp_path / zip_file.name, few))
    assert len(characters) == 242
    unpack(parts, tmp_path / "omniglot")
    found = open_images(tmp_path / "omniglot")
    assert found.class_names == sorted(c for c in characters if c.endswith("/character01"))
    assert np.bincount(found.labels).tolist() == [20] * 8
    assert found.image(0).shape == (105, 105, 3) and set(np.unique(found.image(0))) == {0, 255}


def png16(shape):
    """A PNG of 16 bits per channel, grey or RGB."""
    height, width = shape[:2]
    rows = np.full(shape, 300, ">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = 2 if len(shape) == 3 else 0

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_other_modes_become_rgb(tmp_path):
    colour = picture(0, 0, 8)
    grey, bits = colour[..., 0], colour[..., 0] > 128
    alpha = np.dstack([colour, grey])
    palette = Image.fromarray(colour).quantize(16)
    table = np.array(palette.getpalette()).reshape(-1, 3)
    cases = {
        "l.png": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "la.png": (Image.fromarray(np.dstack([grey, grey]), "LA"), np.dstack([grey] * 3)),
        "rgba.png": (Image.fromarray(alpha), colour),
        "1.png": (Image.fromarray(bits), np.dstack([bits] * 3) * 255),
        "p.png": (palette, table[np.asarray(palette)]),
        "grey.jpg": (Image.new("L", (8, 8), 77), np.full((8, 8, 3), 77)),
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 155)), np.full((8, 8, 3), 100)),
    }
    (tmp_path / "a").mkdir()
    for name, (image, _) in cases.items():
        image.save(tmp_path / "a" / name)
    found = open_images(tmp_path)
    assert len(found) == len(cases)
    for k in range(len(found)):
        want = cases[os.path.basename(found.describe(k))][1]
        assert found.image(k).shape == (8, 8, 3)
        assert np.abs(found.image(k).astype(int) - want).max() <= (k in (1, 2)), found.describe(k)


@pytest.mark.parametrize("kind", ["grey16", "colour16", "cut", "text", "empty", "gone"])
def test_images_that_can_not_be_used_are_named(tmp_path, kind):
    save(tmp_path / "a/0.png")
    file = tmp_path / "a/0.png"
    good = file.read_bytes()
    found = open_images(tmp_path)
    file.unlink()
    data = {
        "grey16": png16((4, 5)),
        "colour16": png16((4, 5, 3)),
        "cut": good[: len(good) // 2],
        "text": b"<html>",
        "empty": b"",
    }
    if kind in data:
        file.write_bytes(data[kind])
    word = "more than 8 bits" if kind.endswith("16") else "a/0.png"
    refused(word, found.image, 0)
    refused("a/0.png", found.load, 0, np.zeros((9, 7, 3), np.uint8))


def test_records_have_images_of_their_own_size(tmp_path):
    faces = RecordSet(write_faces(tmp_path / "train.rec", [1, 1]))
    out = np.zeros((112, 112, 3), np.uint8)
    faces.load(1, out)
    assert np.array_equal(faces.image(1), out) and faces.class_names is None


# --- lists


names = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


@settings(max_examples=60)
@given(st.lists(st.tuples(names, st.integers(0, 10**9 - 1)), min_size=1, max_size=8))
def test_lists_come_back_as_they_are_or_are_refused(tmp_path_factory, pairs):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    listed, labels = [name for name, _ in pairs], np.array([label for _, label in pairs])
    fine = all(
        b"\n" not in name
        and name == name.rstrip()
        and not name.startswith(b"/")
        and b".." not in name.split(b"/")
        for name in listed
    )
    try:
        text = list_text(path, path.parent, listed, labels)
    except BctError:
        assert not fine
        return
    assert fine
    path.write_bytes(text)
    root, found, found_labels = read_list(path)
    assert (root, found, found_labels.tolist()) == (b".", listed, labels.tolist())


@pytest.mark.parametrize("place", ["train/list.txt", "list.txt", "elsewhere/list.txt"])
def test_lists_of_openbct(folder, place):
    """Spaces, tabs and CRLF; relative to the list's folder, train/ in it, or a root in line 1."""
    path = folder.parent / place
    path.parent.mkdir(exist_ok=True)
    lines = ["ant/2 x.png 1", "10/1 x.png\t0", "  ", "ant/0 x.png   1", ""]
    text = "\r\n".join(lines)
    path.write_bytes(text.encode())
    if place.startswith("elsewhere"):
        refused("neither in", open_images, path)
        path.write_bytes(b"# root: ../train\r\n" + text.encode())
    found, whole = open_images(path), open_images(folder)
    assert found.labels.tolist() == [1, 0, 1] and found.class_names == ["10", "ant"]
    for k, same in enumerate((5, 1, 3)):
        assert np.array_equal(found.image(k), whole.image(same))
    assert np.array_equal(open_images(path).fingerprint, found.fingerprint)


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["10/0 x.png 0", "10/1 x.png"], "line 2 is not <path> <label>: '10/1 x.png'"),
        (["10/0 x.png 0", "", "10/1 x.png -1"], "line 3 is not"),
        (["10/0 x.png 1.0"], "line 1 is not"),
        (["10/0 x.png 0", "7"], "line 2 is not"),
        (["10/0 x.png 99999999999999999999"], "line 1 is not"),
        (["10/0\0 x.png 0"], "line 1 is not"),
        (["# a comment", "10/0 x.png 0"], "line 1 is not"),
        (["10/0 x.png 0", "10/1 x.png 2"], "no image of class 1, but"),
        (["10/0 x.png 1"], "no image of class 0"),
        (["# root: nowhere", "10/0 x.png 0"], "nowhere is not there"),
        (["# root: ."], "names no image"),
        ([""], "names no image"),
    ],
)
def test_bad_lists(folder, lines, word):
    (folder / "l.txt").write_text("\n".join(lines) + "\n")
    refused(word, open_images, folder / "l.txt")


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.png", "10/../../x.png", ".."])
def test_lists_do_not_lead_out_of_their_root(folder, name):
    save(folder.parent / "x.png")
    (folder / "l.txt").write_text(f"10/0 x.png 0\n{name} 0\n")
    refused("line 2 is not a file below the list's root", open_images, folder / "l.txt")
    refused("does not lie below", list_text, folder / "m.txt", folder, [os.fsencode(name)],
            np.array([0]))  # fmt: skip
    (folder / "val_annotations.txt").write_text(f"{name}\tn01\n")
    refused("val_annotations.txt, line 1 is not", open_images, folder)


@pytest.mark.parametrize("kind", ["fifo", "device", "huge", "socket", "folder"])
def test_only_regular_files_of_a_bounded_size_are_read(folder, kind):
    """Nothing is waited for, and no memory is taken for what a sparse file claims."""
    path = folder / "10" / "0 x.png"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif kind == "socket":
        holder = socket.socket(socket.AF_UNIX)
        holder.bind(os.path.relpath(path))
    else:
        path.mkdir()
    (folder / "l.txt").write_text("10/0 x.png 0\n")
    refused("can't be read", open_images(folder / "l.txt").image, 0)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_byte_order_marks(folder, mark):
    """UTF-8's is passed over in every text file; UTF-16 is refused by name."""
    lines = b"# root: .\n10/0 x.png 0\nant/0 x.png 1\n"
    side = b'{"images": 2, "classes": 2, "class_names": ["a", "b"]}'
    (folder / "l.txt").write_bytes(mark + lines)
    (folder / "l.json").write_bytes(mark + side)
    (folder / "val_annotations.txt").write_bytes(mark + b"0.png\tn01\n")
    rec = write_faces(folder / "a.rec", [1, 1])
    rec.with_suffix(".idx").write_bytes(mark + rec.with_suffix(".idx").read_bytes())
    if mark[0] == 0xEF:
        assert open_images(folder / "l.txt").class_names == ["a", "b"]
        assert open_images(folder).names.tolist() == [b"images/0.png"]
        assert len(open_images(rec)) == 2
    else:
        for name in ("l.txt", "", "a.rec"):
            refused("is UTF-16 text", open_images, folder / name)


def test_what_is_left_out_is_said(tmp_path, capsys):
    for name in ("a/0.png", "b/0.PNG", "b/1.png"):
        save(tmp_path / name)
    (tmp_path / "c").mkdir()
    (tmp_path / "a0").mkdir()
    for name in ("a/1.tiff", "b/notes.txt", "b/.hidden", "c/x.tif"):
        (tmp_path / name).write_bytes(b"x")
    found = open_images(tmp_path)
    assert found.class_names == ["a", "b"] and found.labels.tolist() == [0, 1, 1]
    said = capsys.readouterr().out
    assert "2 of 4 class folders have no image and are no classes, e.g. 'a0'" in said
    assert "3 files in the class folders are no images by their suffix" in said
    for name in ("c/x.tif", "b/notes.txt", "a/1.tiff"):
        (tmp_path / name).unlink()
    for name in ("a0", "c"):
        (tmp_path / name).rmdir()
    open_images(tmp_path)
    assert capsys.readouterr().out == ""


def test_portable_pixmaps(tmp_path):
    """P1 to P6, with comments and other largest values; ORL, Yale B and FERET have them."""
    colour = picture(0, 0, 8)
    grey, bits = colour[..., 0], colour[..., 0] > 128
    text = b" ".join(b"%d" % value for value in grey.ravel())
    half = b" ".join(b"%d" % (value // 2) for value in grey.ravel())
    cases = {
        "a.pgm": (b"P5\n# made by hand\n8 8\n255\n" + grey.tobytes(), grey),
        "b.PGM": (b"P2 8 8 255\n" + text, grey),
        "c.pgm": (b"P2 8 8 127\n" + half, np.round(grey // 2 / 127 * 255)),
        "d.ppm": (b"P6 8 8 255\n" + colour.tobytes(), colour),
        "e.pbm": (b"P4 8 8\n" + np.packbits(~bits).tobytes(), bits * 255),
        "f.pnm": (b"P1 8 8\n" + b" ".join(b"%d" % (1 - bit) for bit in bits.ravel()), bits * 255),
    }
    (tmp_path / "s1").mkdir()
    for name, (data, _) in cases.items():
        (tmp_path / "s1" / name).write_bytes(data)
    found = open_images(tmp_path)
    assert len(found) == len(cases)
    for k, (_, want) in enumerate(cases.values()):
        want = want if want.ndim == 3 else np.dstack([want] * 3)
        assert np.abs(found.image(k).astype(int) - want).max() <= 1, k
    for data in (b"P5 8 8 65535\n" + bytes(128), b"P6 8 8 1023\n" + bytes(384)):
        (tmp_path / "s1/a.pgm").write_bytes(data)
        refused("more than 8 bits", found.image, 0)
    (tmp_path / "s1/a.pgm").write_bytes(b"P5 8 8 255\n" + bytes(60))
    refused("a.pgm is broken", found.image, 0)
    for size in (b"0 0", b"0 8", b"-8 -8"):
        (tmp_path / "s1/a.pgm").write_bytes(b"P5 " + size + b" 255\n" + bytes(64))
        refused("a.pgm is broken", found.image, 0)


def test_another_size_is_not_called_damage(folder, tmp_path):
    out = np.zeros((112, 112, 3), np.uint8)
    faces = RecordSet(write_faces(tmp_path / "a.rec", [1]))
    refused('align the faces to that size; for other images set pixels="imagenet"',
            open_images(folder).load, 0, out)  # fmt: skip
    refused("align the faces", faces.load, 0, out[:64])


def test_a_listed_file_that_is_gone(folder):
    (folder / "l.txt").write_text("10/0 x.png 0\n10/7 x.png 0\n")
    found = open_images(folder / "l.txt")
    refused("10/7 x.png can't be read", found.image, 1)
    refused("it is in " + str(folder / "l.txt"), lambda: found.fingerprint)


@pytest.mark.parametrize(
    "change", [{"images": 1}, {"classes": 3}, {"class_names": ["a", 1]}, {"classes": 1}, None]
)
def test_a_manifest_of_another_list(folder, change):
    path = folder / "l.txt"
    path.write_bytes(list_text(path, folder, [b"10/0 x.png", b"ant/0 x.png"], np.array([0, 1])))
    fits = {"images": 2, "classes": 2, "class_names": ["a", "b"]}
    write_json(folder / "l.json", fits)
    found = open_images(path)
    assert found.class_names == ["a", "b"] and found.num_classes == 2
    write_json(folder / "l.json", [] if change is None else fits | change)
    refused("does not belong to the list", open_images, path)


def test_fingerprints(folder):
    first = open_images(folder)
    files = sorted(folder.glob("*/*"), key=lambda file: str(file))
    known = [f"{file.relative_to(folder)} {file.stat().st_size}" for file in files]
    assert first.fingerprint == sha256(*known)  # as before there were lists: old artefacts stay
    seen = {first.fingerprint}
    for lines in ("10/0 x.png 0\nant/0 x.png 1\n", "10/0 x.png 1\nant/0 x.png 0\n"):
        (folder / "l.txt").write_text(lines)
        seen.add(open_images(folder / "l.txt").fingerprint)
    (folder / "10/0 x.png").write_bytes(b"")
    seen |= {open_images(folder / "l.txt").fingerprint, open_images(folder).fingerprint}
    assert len(seen) == 5


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/a\xff/\xe9 \xc3\xa9.png"
    os.mkdir(os.path.dirname(name))
    with open(name, "wb") as file:
        Image.fromarray(picture(0, 0, 8)).save(file, "png")
    whole = open_images(tmp_path)
    (tmp_path / "l.txt").write_bytes(
        list_text(tmp_path / "l.txt", tmp_path, whole.names.tolist(), whole.labels)
    )
    found = open_images(tmp_path / "l.txt")
    assert found.class_names == whole.class_names == ["a\udcff"]
    assert np.array_equal(found.image(0), whole.image(0)) and len(whole.fingerprint) == 64


# --- CIFAR


def unchecked(kind):
    """torchvision's class, for files that are not the published ones."""

    lists = {n: [(file, None) for file, _ in getattr(kind, n)] for n in ("train_list", "test_list")}
    return type("Reference", (kind,), {**lists, "meta": dict(kind.meta, md5=None)})


@pytest.mark.parametrize("classes", [100, 10])
@pytest.mark.parametrize("part", ["train", "test"])
def test_cifar_is_torchvisions(tmp_path, classes, part):
    folder = write_cifar(tmp_path, classes=classes)
    kind = unchecked(reference.CIFAR100 if classes == 100 else reference.CIFAR10)
    theirs = kind(tmp_path, train=part == "train")
    ours = open_images(folder / part)
    assert np.array_equal(np.stack([ours.image(k) for k in range(len(ours))]), theirs.data)
    assert ours.labels.tolist() == theirs.targets and ours.class_names == theirs.classes
    assert ours.num_classes == classes and ours.native == 32 and ours.image(0).dtype == np.uint8
    out = np.zeros((32, 32, 3), np.uint8)
    assert ours.load(3, out) == theirs.targets[3] and np.array_equal(out, theirs.data[3])
    refused("are 32x32, not 8x8", ours.load, 0, np.zeros((8, 8, 3), np.uint8))
    assert open_images(folder).path == folder / "train"


def test_lists_of_cifar(tmp_path):
    folder = write_cifar(tmp_path)
    whole, path = open_images(folder), tmp_path / "l.txt"
    path.write_bytes(list_text(path, folder / "train", [b"4", b"1"], np.array([0, 1])))
    part = open_images(path)
    assert part.labels.tolist() == [0, 1] and part.num_classes == 2 and part.native == 32
    assert np.array_equal(part.image(1), whole.image(1)) and part.describe(0).endswith("image 4")
    assert part.fingerprint != whole.fingerprint
    path.write_bytes(list_text(path, folder / "train", [b"6"], np.array([0])))
    refused("names an image '6'", open_images, path)


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_cifar_files_that_are_not(tmp_path):
    folder = write_cifar(tmp_path)
    file, marker = folder / "train", tmp_path / "executed"
    good = file.read_bytes()
    pixels, labels = np.zeros((2, 3072), np.uint8), [0, 1]
    for content in (
        pickle.dumps({"data": Evil(marker)}, 2),
        pickle.dumps([1], 2),
        pickle.dumps({"data": pixels, "fine_labels": [0]}, 2),
        pickle.dumps({"data": pixels, "fine_labels": [0, 100]}, 2),
        pickle.dumps({"data": pixels[:, :5], "fine_labels": labels}, 2),
        pickle.dumps({"data": pixels.astype(np.float32), "fine_labels": labels}, 2),
        pickle.dumps({"fine_labels": labels}, 2),
        good[:-100],
        b"",
    ):
        file.write_bytes(content)
        refused(str(file), open_images, file)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(5))
def test_dicts_of_every_protocol(protocol):
    numbers, array = [1, -2, 2**40, 1.5, None, True], np.arange(6).reshape(2, 3)
    found = load_dict(pickle.dumps({"a": numbers, 7: (b"x", "y", ()), "c": array}, protocol))
    assert found["a"] == numbers and found[7][1:] == ("y", ())
    assert np.array_equal(found["c"], array)
    inside = np.array({np.int64(3): np.int32(4)}, object)
    assert load_dict(pickle.dumps(inside, protocol)) == {3: 4}


NESTED = b")" + b"q\x00h\x00\x86" * 60  # each tuple holds the one before twice: 2^60 to hash
DEEP = b")" + b"\x85" * 10_000


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"}" + NESTED + b"K\x01s.", "used twice"),
        (b"}" + DEEP + b"K\x01s.", "a key of type tuple"),
        (b"}" + DEEP + b"\x8c\x01a\x93.", "no string"),
        (b"}]K\x01s.", "a key of type list"),
        (b"}(K\x01u.", "shorter"),
        (b"s.", "lacks its operands"),
        (b"}}.", "too many values"),
        (b"cos\nsystem\n(U\x02lstR.", "asks for os.system"),
        (b"cnumpy\nndarray\n(t}b.", "__setstate__"),
        (b"c_codecs\nencode\n}U\x08__name__U\x01xsb.", "__setstate__"),
        (b"}r\xff\xff\xff\x7fh\x00.", "0"),
        (b"]K\x01a.", "a pickled list"),
    ],
)
def test_dicts_that_are_not(data, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        load_dict(b"\x80\x02" + data)


WHOLE = pickle.dumps({"a": [1, 2], "b": np.arange(3), "c": ("x", np.float32(1))}, 4)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_dict_is_a_dict_or_a_value_error(at, byte, cut):
    data = WHOLE[:at] + bytes([byte]) + (b"" if cut else WHOLE[at + 1 :])
    with contextlib.suppress(ValueError):
        assert isinstance(load_dict(data), dict)


# --- unpacking


def zipped(path, members, link=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, data)
    return path


def test_unpacking_and_reuse(tmp_path, capsys):
    one = zipped(tmp_path / "z/p/1.zip", {"top/a/1.png": b"1", "top/b/2.png": b"2"})
    two = zipped(tmp_path / "z/p/2.zip", {"other/a/1.png": b"1", "other/c/3.png": b"3"})
    zipped(tmp_path / "z/p/deeper/3.zip", {"run/x": b""})
    assert find_zips(tmp_path / "z") == [one, two]
    out = tmp_path / "new" / "out"
    unpack([one, two], out)
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.png")}
    assert found == {"a/1.png": b"1", "b/2.png": b"2", "c/3.png": b"3"}
    capsys.readouterr()
    unpack([one, two], out)
    assert "reusing it" in capsys.readouterr().out
    refused("was not made of these zips", unpack, [one], out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    refused("there is no zip", find_zips, out)


@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "/evil", "top/link"])
def test_zips_that_would_write_elsewhere(tmp_path, name):
    bad = zipped(tmp_path / "z.zip", {"top/fine": b"1", name: b"/etc"}, link="top/link")
    refused("would write outside of its folder", unpack, [bad], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["z.zip"]


def test_zips_that_are_damaged_or_disagree(tmp_path):
    one = zipped(tmp_path / "1.zip", {"top/a": b"1" * 50})
    two = zipped(tmp_path / "2.zip", {"top/a": b"2" * 50})
    refused("a is in another zip, too", unpack, [one, two], tmp_path / "out")
    data = bytearray(one.read_bytes())
    data[data.index(b"1" * 50)] ^= 1
    one.write_bytes(data)
    refused("1.zip can't be unpacked", unpack, [one], tmp_path / "out")
    with zipfile.ZipFile(one, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("top/a", bytes(range(256)) * 9)
    data = bytearray(one.read_bytes())
    data[35] ^= 7  # the kind of the first block, in a stream of 30 + 5 bytes further on
    one.write_bytes(data)
    refused("1.zip can't be unpacked (it is damaged", unpack, [one], tmp_path / "out")
    one.write_bytes(b"no zip")
    refused("1.zip can't be unpacked", unpack, [one], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.zip", "2.zip"]
