"""Writers of data sets, killed before every change of the disk: the same command then works, clears
up, and touches nothing that is not its own."""

import multiprocessing
import resource
import shutil
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from support.killed import kills
from support.pictures import jpeg, picture, write_faces

from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header
from bct.data.sets import RecordSet, open_images
from bct.errors import BctError
from bct.files import sha256_file
from tools import check_rec, folder_to_rec, make_demo_data, split_dataset
from tools.split_dataset import write_part
from tools.unpack import unpack


def command(monkeypatch, module, *arguments):
    def call():
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return call


def records(tmp_path, monkeypatch):
    write_faces(tmp_path / "train.rec", [1, 2, 1])
    out = tmp_path / "parts"
    call = command(
        monkeypatch, split_dataset, tmp_path / "train.rec", "--out", out, "--by", "class"
    )
    return call, out, [f"train_part_{p}_class.rec" for p in (30, 70)]


def lists(tmp_path, monkeypatch):
    for k in range(6):
        (tmp_path / "set" / str(k // 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k, 0, 8)).save(tmp_path / f"set/{k // 2}/{k}.png")
    out = tmp_path / "parts"
    call = command(monkeypatch, split_dataset, tmp_path / "set", "--out", out, "--by", "data")
    return call, out, ["train.txt", *(f"train_part_{p}_data.txt" for p in (30, 70))]


def packed(tmp_path, monkeypatch):
    for k in range(4):
        (tmp_path / "set" / str(k // 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/{k // 2}/{k}.jpg").write_bytes(jpeg(k, 0))
    out = tmp_path / "packed"
    return command(monkeypatch, folder_to_rec, tmp_path / "set", out), out, ["train.rec"]


WRITERS = {"split of records": records, "split of a folder": lists, "folder_to_rec": packed}


def contents(folder):
    return {p.name: sha256_file(p) for p in folder.iterdir()}


@pytest.mark.parametrize(
    "writer",
    [
        "split of records",
        pytest.param("split of a folder", marks=pytest.mark.slow),
        "folder_to_rec",
    ],
)
def test_killed_before_every_change_of_the_disk(writer, tmp_path, monkeypatch, capfd):
    call, out, names = WRITERS[writer](tmp_path, monkeypatch)
    call()
    whole, killed = contents(out), 0
    assert set(names) <= whole.keys()
    clear(out)
    for _ in kills(call):
        killed += 1
        for name in names:
            if (out / name).exists():  # it has its name: it is whole, with all that belongs to it
                assert len(open_images(out / name)) > 0
        if writer == "folder_to_rec" and (out / "train.rec").exists():
            clear(out)
            continue
        call()
        assert contents(out) == whole
        clear(out)
    assert killed > 30 and contents(out) == whole
    print(f"{writer}: {killed} kills")


def clear(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_foreign_is_replaced(writer, tmp_path, monkeypatch, capsys):
    """Whichever of the files is there before and is somebody else's, even a link to nowhere."""
    call, out, _ = WRITERS[writer](tmp_path, monkeypatch)
    call()
    tried = sorted(contents(out))
    for name in tried:
        for link in (False, True):
            clear(out)
            if link:
                (out / name).symlink_to(tmp_path / "nowhere")
            else:
                (out / name).write_text("mine\n")
            with pytest.raises(BctError, match="exists"):
                call()
            assert (out / name).is_symlink() if link else (out / name).read_text() == "mine\n"
            assert not (tmp_path / "nowhere").exists()
    assert len(tried) >= 4


def test_a_set_of_another_source_is_not_replaced(tmp_path, monkeypatch, capsys):
    call, out, names = records(tmp_path, monkeypatch)
    call()
    for file in out.glob("*.rec"):
        file.unlink()
    call()  # all that is left is ours
    assert all((out / name).is_file() for name in names)
    write_faces(tmp_path / "train.rec", [1, 2, 2])
    before = contents(out)
    with pytest.raises(BctError, match="was not made from"):
        call()
    for file in out.glob("*.rec"):
        file.unlink()
        before.pop(file.name)
    with pytest.raises(BctError, match=r"train_part_30_class\.json exists"):
        call()
    assert contents(out) == before


@pytest.mark.parametrize("limit", [3000, 9000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, limit):
    """In the middle of a record file, and in the last bytes, which closing it writes."""
    pictures = [jpeg(k, 0) for k in range(3)]
    sizes = sum(map(len, pictures))

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit) if limit < 9000 else (sizes,) * 2)
        with pytest.raises(OSError) as info, RecordWriter(tmp_path / "a.rec") as writer:
            for key, picture in enumerate(pictures):
                writer.write(key, Header(0.0, key), picture)
        assert info.value.filename == str(tmp_path / "a.rec"), info.value
        assert not list(tmp_path.iterdir())

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_an_empty_record_is_not_copied(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, Header([4, 2]), b"")
        for key in (1, 2, 3):
            writer.write(key, Header(float(key % 2), key), jpeg(0, 0) if key < 3 else b"")
    faces = RecordSet(tmp_path / "a.rec")
    with pytest.raises(BctError, match=r"key 3 at offset .*it has no data"):
        write_part(faces, (np.arange(3), faces.labels), tmp_path / "b.rec")
    assert not (tmp_path / "b.rec").exists()


def test_a_repair_that_was_killed_can_be_given_again(tmp_path, monkeypatch, capfd):
    rec = write_faces(tmp_path / "a.rec", [2, 2])
    index, backup = rec.with_suffix(".idx"), rec.with_name("a.idx.bak")
    lines = index.read_text().splitlines(keepends=True)

    def call():
        monkeypatch.setattr(sys, "argv", ["check_rec.py", str(rec), "-j", "1", "--no-decode",
                                          "--repair"])  # fmt: skip
        with pytest.raises(SystemExit):
            check_rec.main()

    def damage():
        backup.unlink(missing_ok=True)
        index.write_text("".join(lines[:2] + lines[3:]))

    damage()
    damaged, killed = index.read_bytes(), 0
    for _ in kills(call):
        killed += 1
        if index.read_bytes() == damaged:
            call()
        assert backup.read_bytes() == damaged
        assert sorted(index.read_text().splitlines()) == sorted("".join(lines).splitlines())
        damage()
    assert killed > 10
    print(f"repair: {killed} kills")
    assert {p.name for p in tmp_path.iterdir()} == {"a.rec", "a.idx", "a.idx.bak"}


def test_a_folder_is_whole_or_absent(tmp_path, capfd):
    """What killed calls left is cleared by the next one; a folder of somebody else's stays."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for k in range(3):
            archive.writestr(f"top/{k}/{k}.txt", "x" * 10)
    out, killed = tmp_path / "out", 0

    def call():
        unpack([tmp_path / "a.zip"], out)

    for _ in kills(call):
        killed += 1
        call()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]
        assert sorted(p.name for p in out.iterdir()) == ["0", "1", "2", "unpacked.json"]
        shutil.rmtree(out)
    assert killed > 15
    print(f"unpack: {killed} kills")


def test_demo_data_that_was_killed_is_drawn_again(tmp_path, monkeypatch, capfd):
    out, killed = tmp_path / "demo", 0

    def drawn(*_):  # a moment instead of seconds: only the folder is of interest here
        return {}

    for name in ("_write_training", "_write_evaluation"):
        monkeypatch.setattr(make_demo_data, name, drawn)
    monkeypatch.setattr(make_demo_data, "sha256_file", lambda _: "x")

    def call():
        make_demo_data.make(out, 2, 2, 2, workers=1, force=True)

    call()
    for _ in kills(call):
        killed += 1
        call()
        assert [p.name for p in tmp_path.iterdir()] == ["demo"]
        assert [p.name for p in out.iterdir()] == ["demo.json"]
    assert killed > 10
    print(f"demo: {killed} kills")
