"""tools/embed.py: its rows are those of a plain loop, whatever is given, whenever it is killed."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.cifar import write_cifar
from support.killed import kills
from support.pictures import jpeg, picture, write_faces
from support.script import processes, run_script
from torch import nn

from backbones import get_model
from bct.adapters.procrustes import Procrustes
from bct.data.sources import open_sources
from bct.errors import BctError
from bct.files import sha256_file
from bct.models.model import open_model
from bct.search.gallery import Gallery
from bct.stored.artefacts import open_artefact
from bct.stored.names import read_names, write_names
from bct.stored.unfinished import DONE, begin, part_folder
from tools.embed import embed
from tools.ijbc.align import TEMPLATE, align, similarity_to_template

CPU = torch.device("cpu")
NET = ("-net", "demo_w16", "--amp", "off", "-j", "0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(get_model("demo_w16", 8).state_dict(), path)
    return path


@pytest.fixture
def faces(tmp_path):
    """3 classes of 3 aligned faces."""
    for label in range(3):
        (tmp_path / "faces" / f"c {label}").mkdir(parents=True)
        for k in range(3):
            (tmp_path / "faces" / f"c {label}" / f"{k}.jpg").write_bytes(jpeg(label, k))
    return tmp_path / "faces"


def plain(weights, files, mirror=False):
    """The embeddings of image files by torch and Pillow alone."""
    network = get_model("demo_w16", 8)
    network.load_state_dict(torch.load(weights, weights_only=True))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).float()
    with torch.no_grad():
        network.eval()
        return (network(x) + network(x.flip(3)) if mirror else network(x)).numpy()


def run(*words, code=0, says="", ranks=1, cwd="."):
    done = run_script("tools/embed.py", *words, ranks=ranks, cwd=cwd)
    assert done.returncode == code, done.stderr
    if code:
        assert says in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 2 or ranks > 1, done.stderr
    else:
        assert says in done.stdout, done.stdout
    return done


def made(weights, paths, out, **how):
    """`embed` within this process, of files by their paths."""
    source = open_sources([Path(path) for path in paths], opened=lambda path: None)
    model = how.pop("model", None) or open_model(weights, "demo_w16")
    embed(model, source, out, CPU, num_workers=0, **how)
    return np.load(out)


def refused(says, function, *arguments, **how):
    with pytest.raises(BctError) as info:
        function(*arguments, **how)
    assert says in str(info.value) and len(str(info.value).splitlines()) == 2, str(info.value)


def names(out):
    return read_names(out.with_name(f"{out.stem}_names.txt"))


def contents(folder):
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_classes(weights, faces, tmp_path):
    out = tmp_path / "out.npy"
    run(faces, "-m", weights, *NET, "-o", out, says=f"{out}: 9 x 8 of {faces}")
    files = sorted(faces.rglob("*.jpg"))
    rows = np.load(out)
    assert rows.dtype == np.float32 and np.abs(rows - plain(weights, files)).max() < 1e-4
    assert names(out) == [os.fsencode(file.relative_to(faces)) for file in files]
    labels = np.load(tmp_path / "out_labels.npy")
    assert labels.dtype == np.int64 and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    _, said = open_artefact(out)
    assert said["model"] == sha256_file(weights) and said["count"] == said["rows"] == 9
    assert said["mirror"] is False and said["view"] == [112, "none", "face"]
    assert said["command"].startswith(f"python tools/embed.py {faces} -m {weights}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "faces", "out.json", "out.npy", "out_labels.npy", "out_names.txt"]  # fmt: skip
    before = contents(tmp_path)
    run(faces, "-m", weights, *NET, "-o", out, says="up to date")
    run(faces, "-m", weights, *NET, "-o", out, "--mirror", code=1, says="--overwrite")
    assert contents(tmp_path) == before
    run(faces, "-m", weights.parent, *NET, "-o", out, "--mirror", "--normalise", "--overwrite")
    wanted = plain(weights, files, mirror=True)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(np.load(out) - wanted).max() < 1e-4


def test_it_is_a_gallery_and_can_be_mapped(weights, faces, tmp_path):
    rows = made(weights, [faces], tmp_path / "out.npy")
    gallery = Gallery.load(tmp_path / "out.npy")
    assert gallery.ids.tolist() == [os.fsdecode(name) for name in names(tmp_path / "out.npy")]
    assert np.array_equal(gallery.vectors_of(0), rows)
    assert gallery.fingerprints == (open_model(weights, "demo_w16").fingerprint,)
    gallery.save(tmp_path / "saved")
    assert np.array_equal(Gallery.load(tmp_path / "saved").vectors_of(0), rows)
    Procrustes().fit(rows, rows).save(tmp_path / "same.npz")
    done = run_script("tools/transform_gallery.py", tmp_path / "out.npy", tmp_path / "mapped.npy",
                      "-m", tmp_path / "same.npz")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = open_artefact(tmp_path / "mapped.npy")[1]
    before = open_artefact(tmp_path / "out.npy")[1]
    assert said["data"] == before["data"] and said["old_model"] == before["model"]
    (tmp_path / "out_names.txt").write_bytes(b"a\nb\n")
    refused("has 9 rows", Gallery.load, tmp_path / "out.npy")
    np.save(tmp_path / "bare.npy", rows)
    refused("no manifest", Gallery.load, tmp_path / "bare.npy")


def test_all_kinds_of_images(weights, faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = sorted(faces.rglob("*.jpg"))
    wanted = plain(weights, files)
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    for k, file in enumerate(files):
        for target in (flat / f"{k}.jpg", deep / str(k % 2) / "x" / f"y{k % 3}" / f"{k}.jpg"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (deep / "0" / "notes.md").write_text("not an image")
    (deep / "loop").symlink_to(deep)
    write_faces(tmp_path / "train.rec", [2, 3])
    (tmp_path / "list.txt").write_text("# root: faces\nc 1/0.jpg 1\nc 0/2.jpg 0\n")
    (tmp_path / "x.lst").write_text("# root: faces\n0\t1.0\tc 2/0.jpg\n1\t0.0\tc 0/2.jpg\n")
    for k, (paths, found, called, labels) in enumerate((
        (["flat"], range(9), [f"{k}.jpg" for k in range(9)], None),
        (["flat/4.jpg"], [4], ["flat/4.jpg"], None),
        (["deep"], None, None, None),
        (["list.txt"], [3, 2], ["c 1/0.jpg", "c 0/2.jpg"], [1, 0]),
        (["x.lst"], [6, 2], ["c 2/0.jpg", "c 0/2.jpg"], [1, 0]),
        (["train.rec"], [0, 1, 3, 4, 5], ["1", "2", "3", "4", "5"], [0, 0, 1, 1, 1]),
        (["flat/8.jpg", "list.txt", "flat/0.jpg", "train.rec"], [8, 3, 2, 0, 0, 1, 3, 4, 5],
         ["flat/8.jpg", "list.txt/c 1/0.jpg", "list.txt/c 0/2.jpg", "flat/0.jpg",
          *(f"train.rec/{key}" for key in range(1, 6))], None),
    )):  # fmt: skip
        out = tmp_path / f"{k}.npy"
        rows = made(weights, paths, out)
        if found is None:
            called = [os.fsdecode(name) for name in names(out)]
            assert sorted(called) == called and len(called) == 9
            found = [int(Path(name).stem) for name in called]
        assert np.abs(rows - wanted[list(found)]).max() < 1e-4, paths
        assert names(out) == [os.fsencode(name) for name in called]
        stored = tmp_path / f"{k}_labels.npy"
        assert (np.load(stored).tolist() if stored.is_file() else None) == labels, paths


def test_sets_of_small_images_and_of_pairs(weights, tmp_path):
    cifar = write_cifar(tmp_path / "cifar")
    model = open_model(weights, "demo_w16", pixels="imagenet", size=112)
    rows = made(weights, [cifar], tmp_path / "out.npy", model=model)
    source = open_sources([cifar], opened=lambda path: None)
    assert len(rows) == len(source.images) and source.labelled
    assert np.array_equal(np.load(tmp_path / "out_labels.npy"), source.images.labels)
    assert names(tmp_path / "out.npy")[3] == b"3"
    for k in range(2):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(k, k))
    (tmp_path / "pairs.txt").write_text("0.jpg 1.jpg 0\n1.jpg 1.jpg 1\n")
    words = ("pairs", tmp_path / "pairs.txt", tmp_path / "x.bin", "--root", tmp_path)
    assert run_script("tools/convert.py", *words).returncode == 0
    run(tmp_path / "x.bin", "-m", weights, *NET, "-o", tmp_path / "bin.npy")
    wanted = plain(weights, [tmp_path / f"{k}.jpg" for k in (0, 1, 1, 1)])
    assert np.abs(np.load(tmp_path / "bin.npy") - wanted).max() < 1e-4
    assert names(tmp_path / "bin.npy") == [b"0", b"1", b"2", b"3"]
    rows = made(weights, [tmp_path / "0.jpg"], tmp_path / "y.npy")
    assert np.abs(rows - wanted[:1]).max() < 1e-4


def test_models_of_all_kinds(weights, faces, tmp_path):
    files = sorted(faces.rglob("*.jpg"))
    of_ours = plain(weights, files)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "script").mkdir()
    words = (weights, "-net", "demo_w16", "-o", tmp_path / "onnx" / "model.onnx")
    assert run_script("tools/export_onnx.py", *words).returncode == 0
    other = nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(48, 8)).eval()
    with warnings.catch_warnings():  # that torch.jit is to go
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(other, torch.zeros(1, 3, 112, 112))
        traced.save(str(tmp_path / "script" / "model.pt"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        of_other = other(torch.from_numpy(pixels / np.float32(127.5) - 1)).numpy()
    for name, more, wanted in (
        ("onnx", (), of_ours),
        ("script", ("-net", "torchscript"), of_other),
    ):
        out = tmp_path / f"{name}.npy"
        run(faces, "-m", tmp_path / name, *more, "--amp", "off", "-j", "0", "-o", out)
        assert np.abs(np.load(out) - wanted).max() < 1e-4, name
    shutil.copy(weights, tmp_path / "onnx")
    for path, says in (
        (tmp_path / "onnx", "holds model.pt and model.onnx"),
        (tmp_path, "holds no model"),
        (tmp_path / "onnx.npy", "holds embeddings, not a network"),
        (tmp_path / "none.pt", "does not exist"),
        (weights, "does not say which network it is"),
    ):
        run(faces, "-m", path, "-o", tmp_path / "x.npy", code=1, says=says)
    assert not list(tmp_path.glob("x*"))


class Counting(nn.Module):
    """A network that notes how many images it gets, and ends its process after some batches."""

    embedding_size = 8

    def __init__(self, weights, file=None, last=None):
        super().__init__()
        self.network = open_model(weights, "demo_w16").backbone
        self.images, self.batches, self.last = 0, 0, last

    def forward(self, x):
        if self.batches == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches += 1
        self.images += len(x)
        return self.network(x)


def counting(weights, last=None):
    model = open_model(weights, "demo_w16")
    model.__dict__["backbone"] = Counting(weights, last=last)
    return model


def killed_after(batches, weights, faces, out, **how):
    def call():
        torch.set_num_threads(1)
        model = counting(weights, batches)
        made(weights, [faces], out, model=model, batch_size=2, every=0, **how)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_run_is_gone_on_with(weights, faces, tmp_path):
    out = tmp_path / "out.npy"
    whole = made(weights, [faces], tmp_path / "whole.npy", batch_size=2)
    killed_after(2, weights, faces, out)
    assert not out.exists() and (np.load(part_folder(out) / "state.npy") == DONE).sum() == 4
    killed_after(1, weights, faces, out, again="resume")
    before = contents(tmp_path)
    refused("holds 6 of 9 embeddings", made, weights, [faces], out)
    refused("begun with another mirror", made, weights, [faces], out, again="resume", mirror=True)
    refused("begun with another model", made, other(weights, tmp_path), [faces], out,
            again="resume")  # fmt: skip
    assert {k: v for k, v in contents(tmp_path).items() if k != "other.pt"} == before
    extra = faces / "c 0" / "more.jpg"
    extra.write_bytes(jpeg(0, 9))
    refused("begun with another data", made, weights, [faces], out, again="resume")
    extra.unlink()
    model = counting(weights)
    assert np.array_equal(
        made(weights, [faces], out, model=model, again="resume", batch_size=2), whole
    )
    assert model.backbone.images == 3 and not part_folder(out).exists()
    assert (tmp_path / "out_names.txt").read_bytes() == (tmp_path / "whole_names.txt").read_bytes()


def other(weights, folder):
    torch.manual_seed(1)
    torch.save(get_model("demo_w16", 8).state_dict(), folder / "other.pt")
    return folder / "other.pt"


def test_beginning_anew(weights, faces, tmp_path):
    out = tmp_path / "out.npy"
    killed_after(2, weights, faces, out)
    model = counting(weights)
    made(weights, [faces], out, model=model, again="overwrite")
    assert model.backbone.images == 9
    made(weights, [faces / "c 0"], out, again="overwrite")  # a set without labels
    assert len(np.load(out)) == 3 and not (tmp_path / "out_labels.npy").exists()


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_changes_of_the_disk(every, weights, faces, tmp_path):
    """Whatever is there then is whole, or is gone on with."""
    few, folder, killed = faces / "c 1", tmp_path / "a", 0
    out, model = folder / "out.npy", open_model(weights, "demo_w16")
    model.backbone  # noqa: B018 - loaded once
    folder.mkdir()

    def call():
        made(weights, [few], out, model=model, again="resume", every=0)

    call()
    whole = contents(folder)
    for file in folder.iterdir():
        file.unlink()
    for _ in kills(call, every):
        killed += 1
        if out.exists():
            open_artefact(out)
        call()
        found = contents(folder)
        assert found.keys() == whole.keys()
        assert all(found[name] == whole[name] for name in whole if name != "out.json")
        shutil.rmtree(folder)
        folder.mkdir()
    assert killed > 25 // every


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_while_others_are_replaced(every, weights, faces, tmp_path):
    """Rows never lie beside the names of other images; the work that is done is gone on with."""
    folder, killed = tmp_path / "a", 0
    out, model = folder / "out.npy", open_model(weights, "demo_w16")
    model.backbone  # noqa: B018 - loaded once
    folder.mkdir()

    def call(label=2):
        images = [faces / f"c {label}"]
        return made(weights, images, out, model=model, again="overwrite", every=0, batch_size=2)

    before = call(label=1).copy()
    old = contents(folder)
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    after = made(weights, [faces / "c 2"], tmp_path / "b.npy", model=model)
    (faces / "c 2" / "0.jpg").rename(faces / "c 2" / "9.jpg")
    after = after[[1, 2, 0]]
    for _ in kills(call, every):
        killed += 1
        with suppress(BctError):
            found = Gallery.load(out)
            first = after if "9.jpg" in found.ids else before
            assert np.allclose(found.vectors[0], first, atol=1e-4)
        done = part_folder(out) / "state.npy"
        done = int((np.load(done) == DONE).sum()) if done.exists() else 0
        work = counting(weights)
        made(weights, [faces / "c 2"], out, model=work, again="resume", replace=True,
             every=0)  # fmt: skip
        assert np.allclose(np.load(out), after, atol=1e-4) and names(out) == [
            b"1.jpg",
            b"2.jpg",
            b"9.jpg",
        ]
        assert work.backbone.images in (0, 3 - done)
        assert not part_folder(out).exists() and contents(folder).keys() == old.keys()
        shutil.rmtree(folder)
        folder.mkdir()
        for name, data in kept.items():
            (folder / name).write_bytes(data)
    assert killed > 25 // every


def test_a_view_that_model_json_contradicts_is_refused(weights, faces, tmp_path):
    shutil.copy(weights, tmp_path / "model.pt")
    view = {"size": 112, "crop": "none", "mirror": True, "pixels": "face"}
    about = {"network": "demo_w16", "view": view}
    (tmp_path / "model.json").write_text(json.dumps(about))
    words = (faces, "-m", tmp_path / "model.pt", "-o", tmp_path / "x.npy", "-j", 0)
    for option, value in (("--size", 64), ("--crop", "resized"), ("--pixels", "imagenet")):
        says = f"model.json says {option.removeprefix('--')} {view[option.removeprefix('--')]}"
        run(*words, option, value, code=1, says=says)
    run(*words, "--pixels", "face", "--size", 112)


def test_a_network_of_other_images_has_to_say_how_it_sees_them(faces, tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "tv.pth")
    words = (faces, "-m", tmp_path / "tv.pth", "-net", "resnet18", "-j", 0, "--amp", "off")
    for more in ((), ("--size", 64)):
        run(*words, *more, "-o", tmp_path / "x.npy", code=1, says="does not say how it sees")
    view = ("--size", 64, "--crop", "none", "--pixels", "imagenet")
    run(*words, *view, "-o", tmp_path / "x.npy")
    assert json.loads((tmp_path / "x.json").read_text())["view"] == [64, "none", "imagenet"]


def test_ranks_share_the_images(weights, faces, tmp_path):
    whole = made(weights, [faces], tmp_path / "whole.npy")
    words = (faces, "-m", weights, *NET, "-b", "2")
    run(*words, "-o", tmp_path / "two.npy", ranks=2)
    assert np.abs(np.load(tmp_path / "two.npy") - whole).max() < 1e-4
    assert (tmp_path / "two_names.txt").read_bytes() == (tmp_path / "whole_names.txt").read_bytes()
    killed_after(4, weights, faces, tmp_path / "out.npy")  # one row is left for two ranks
    done = run(*words, "-o", tmp_path / "out.npy", "--resume", "--amp", "off", ranks=2)
    assert "8 of them by the run before" in done.stdout
    assert np.abs(np.load(tmp_path / "out.npy") - whole).max() < 1e-4


def test_broken_images(weights, faces, tmp_path):
    good = sorted(faces.rglob("*.jpg"))
    (faces / "c 1" / "0b.jpg").write_bytes(b"no image")
    (faces / "c 1" / "1b.jpg").write_bytes(jpeg(0, 0)[:100])
    (faces / "c 2" / "small.png").write_bytes(b"")
    out = tmp_path / "out.npy"
    words = (faces, "-m", weights, *NET, "-o", out, "-b", "1")  # whole batches are broken
    run(*words, code=1, says="0b.jpg is broken")
    assert (np.load(part_folder(out) / "state.npy") == DONE).sum() == 4
    run(*words, "--resume", "--on-bad-image", "skip", says="3 images are left out")
    assert np.abs(np.load(out) - plain(weights, good)).max() < 1e-4
    assert names(out) == [os.fsencode(file.relative_to(faces)) for file in good]
    assert np.load(tmp_path / "out_labels.npy").tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    lines = read_names(tmp_path / "out_left_out.txt")
    assert [line.split(b"\t")[0] for line in lines] == [
        b"c 1/0b.jpg", b"c 1/1b.jpg", b"c 2/small.png"]  # fmt: skip
    assert b"it is not an image file" in lines[0]
    assert json.loads((tmp_path / "out.json").read_text())["left_out"] == 3
    before, gone = np.load(out), faces / "c 0" / "gone.jpg"
    gone.symlink_to("nowhere")
    (tmp_path / "more.lst").write_text(f"0\t0\t{good[0].relative_to(tmp_path)}\n1\t0\tgone.jpg\n")
    words = ("-m", weights, *NET, "--on-bad-image", "skip", "-o", tmp_path / "two.npy")
    run(faces, tmp_path / "more.lst", *words, says="5 images are left out")
    assert np.abs(np.load(tmp_path / "two.npy") - before[[*range(9), 0]]).max() < 1e-4
    assert b"gone.jpg can't be read" in read_names(tmp_path / "two_left_out.txt")[0]
    gone.unlink()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jpg").write_bytes(b"")
    words = (tmp_path / "none", "-m", weights, *NET, "-o", tmp_path / "x.npy")
    run(*words, "--on-bad-image", "skip", code=1, says="none of the 1 images could be embedded")
    for path, says in (
        (tmp_path / "nothing", "there are no images at"),
        (tmp_path / "no.jpg", "there is no image"),
        (weights.parent, "holds no image"),
    ):
        run(path, "-m", weights, *NET, "-o", tmp_path / "y.npy", code=1, says=says)
    run(faces, "-m", weights, *NET, "-o", tmp_path / "y.txt", code=1, says="ends in .npy")
    assert not list(tmp_path.glob("y*"))


@pytest.fixture
def loose(tmp_path):
    """Pictures of faces that are not aligned, and their landmarks' lines."""
    lines, rng = [], np.random.default_rng(0)
    (tmp_path / "loose").mkdir()
    for k in range(4):
        name = f"{k} 1.png"
        Image.fromarray(picture(k, 0, 150 + k)).save(tmp_path / "loose" / name)
        points = (TEMPLATE * (1 + k / 10) + 5 + rng.normal(0, 1, (5, 2))).ravel()
        lines.append(" ".join([name, *(f"{v:.2f}" for v in points), *(["0.9"] * (k % 2))]))
    return tmp_path / "loose", lines


def test_landmarks_align(weights, loose, tmp_path):
    folder, lines = loose
    words = (folder, "-m", weights, *NET, "-o", tmp_path / "out.npy")
    run(*words, code=1, says="--landmarks FILE, or faces that are aligned")
    assert not part_folder(tmp_path / "out.npy").exists()
    file = tmp_path / "points.txt"
    file.write_text("\n".join([*lines[::-1], "else.png " + "1 " * 10]))
    done = run(*words, "--landmarks", file)
    assert "1 lines are of other images" in done.stdout
    (tmp_path / "aligned").mkdir()
    for k in range(4):
        fields = lines[k].removeprefix(f"{k} 1.png ").split()[:10]
        points = np.array(fields, np.float64).reshape(1, 5, 2)
        pixels = np.asarray(Image.open(folder / f"{k} 1.png"))
        face = align(pixels, similarity_to_template(points)[0])
        Image.fromarray(face).save(tmp_path / "aligned" / f"{k}.png")
    wanted = plain(weights, sorted((tmp_path / "aligned").iterdir()))
    assert np.abs(np.load(tmp_path / "out.npy") - wanted).max() < 1e-4

    nobody = " ".join(["1 1.png", *["0"] * 10])
    outside = " ".join(["2 1.png", *(str(float(v) + 9000) for v in lines[2].split()[2:12])])
    file.write_text("\n".join([lines[0], nobody, outside]))
    words = (*words[:-1], tmp_path / "few.npy", "--landmarks", file)
    run(*words, code=1, says="has no face")
    done = run(*words, "--on-bad-image", "skip", "--overwrite", says="3 images are left out")
    assert np.abs(np.load(tmp_path / "few.npy") - wanted[:1]).max() < 1e-4
    text = (tmp_path / "few_left_out.txt").read_text()
    assert [word in text for word in ("has no face", "lie outside", "has no line in")] == [True] * 3


def test_bad_landmarks_are_refused(weights, loose, tmp_path):
    folder, lines = loose
    file = tmp_path / "points.txt"
    for text, says in (
        ("", "has no line for any of the images"),
        ("x.png " + "1 " * 10, "has no line for any of the images"),
        (lines[0] + "\n" + lines[0], "is in line 1, too"),
        (lines[0] + "\nshort 1 2 3", "line 2: no name with 10 coordinates"),
        (lines[0].replace(" 1.png", " 1.png x"), "has no line for any of the images"),
        ("0 1.png " + "1_0 " * 10, "line 1: no name with 10 coordinates"),
        ("0 1.png " + "1e300 " * 10, "line 1: a coordinate is none"),
    ):
        file.write_text(text)
        run(folder, "-m", weights, *NET, "-o", tmp_path / "x.npy", "--landmarks", file,
            code=1, says=says)  # fmt: skip
    run(folder, "-m", weights, *NET, "-o", tmp_path / "x.npy", "--landmarks", tmp_path / "none",
        code=1, says="do not exist")  # fmt: skip
    assert not list(tmp_path.glob("x*"))


def test_nothing_of_somebody_elses_is_replaced(weights, faces, tmp_path):
    model = open_model(weights, "demo_w16")
    for name, text in (
        ("out.npy", "mine"),
        ("out.json", "{}"),
        ("out_names.txt", "mine"),
        ("out_labels.npy", "mine"),
        ("out_left_out.txt", "mine"),
        ("out.part", "mine"),
        ("out.part/notes.txt", "mine"),
    ):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        for again in (None, "resume", "overwrite"):
            if (name, again) != ("out.npy", "overwrite"):
                with pytest.raises(BctError):
                    made(weights, [faces], folder / "out.npy", model=model, again=again)
        assert (folder / name).read_text() == text
        assert [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()] == [name]


def test_a_full_disk_is_told_before_the_work(weights, faces, tmp_path):
    def call():
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        with pytest.raises(OSError) as info:
            made(weights, [faces], tmp_path / "out.npy", model=model)
        assert info.value.filename == str(tmp_path / "out.part" / "rows.npy"), info.value
        assert not model.backbone.images and not part_folder(tmp_path / "out.npy").exists()

    model = counting(weights)
    model.backbone.embedding_size = 512  # 18 KB of rows
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_two_at_once_and_runs_that_had_done_nothing(weights, faces, tmp_path):
    out = tmp_path / "out.npy"
    lock = begin(out, (9, 8), {"model": "another"}, None)
    refused("another process writes", made, weights, [faces], out, again="overwrite")
    os.close(lock)
    assert len(made(weights, [faces], out)) == 9


class Same(nn.Module):
    most = 0

    """What one image gives, for any batch: the network costs nothing."""

    embedding_size = 2048

    def forward(self, x):
        Same.most = max(Same.most, anonymous())
        return x[:, :1, 0, 0].expand(-1, 2048).contiguous()


def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


def peaks(weights, folder):
    """The most memory that this process has had, embedding 2,000 rows and then 22,000."""
    (folder / "a.jpg").write_bytes(jpeg(0, 0))
    most = []
    for run, count in enumerate((2_000, 2_000, 22_000)):  # the first only fills Python's own heap
        source = open_sources([folder / "a.jpg"] * count, opened=lambda path: None)
        image = source.images.image(0)
        source.images.load = lambda index, out, image=image: out.__setitem__(..., image) or 0
        model = open_model(weights, "demo_w16")
        model.__dict__["backbone"], Same.most = Same(), 0
        source.images.fingerprint = str(count)
        embed(model, source, folder / f"{run}.npy", CPU, num_workers=0, batch_size=64)
        most.append(max(Same.most, anonymous()))
    return most[1:]


def test_memory_does_not_grow_with_the_rows(weights, tmp_path):
    """Rows of 8 KiB: 20,000 of them would take 156 MiB; names and labels take 100 bytes each."""
    with processes.Pool(1) as pool:  # this process has a heap with holes of other tests
        few, many = pool.apply(peaks, (weights, tmp_path))
    assert many - few < 64 << 20, (few, many)


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_names_come_back(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "names.txt"
    write_names(path, names)
    assert read_names(path) == names and path.read_bytes().count(b"\n") == len(names)


def test_damaged_names_are_refused(tmp_path):
    for text, says in ((b"a\nb", "its last line does not end"), (b"a\\x\n", "a backslash is")):
        (tmp_path / "n.txt").write_bytes(text)
        refused(says, read_names, tmp_path / "n.txt")
    refused("does not exist", read_names, tmp_path / "none.txt")
