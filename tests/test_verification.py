"""Verification sets: reading them safely, and insightface's accuracy."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F
from support.pictures import jpeg, picture
from support.ranks import run_on_ranks

from backbones import get_model
from bct.data.images import decode, to_network
from bct.data.views import PIXELS, View
from bct.errors import BctError
from bct.metrics.folds import accuracy
from bct.models.embed import embed_set
from bct.models.model import open_model
from bct.protocols.pairs import VerificationSet, load_bin, verify


def write_bin(path, images, issame, **options):
    path.write_bytes(pickle.dumps((images, issame), **options))
    return path


def pairs(count=6):
    images = [jpeg(i // 2, j) for i in range(count) for j in (0, 1)]
    return images, [i % 2 == 0 for i in range(count)]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("as_arrays", [False, True])
def test_bytes_and_arrays_of_old_and_new_pickles(tmp_path, protocol, as_arrays):
    images, issame = pairs()
    stored = [np.frombuffer(data, np.uint8) for data in images] if as_arrays else images
    found = load_bin(write_bin(tmp_path / "a.bin", stored, issame, protocol=protocol))
    assert found.name == "a" and found.issame.tolist() == issame
    assert found.images.shape == (12, 112, 112, 3)
    assert (found.images[3] == decode(images[3])).all()


def rows(images):
    return [np.frombuffer(data, np.uint8) for data in images]


PACKERS = {  # what packers leave, as (images, flags)
    "byte arrays": lambda images, flags: ([bytearray(data) for data in images], flags),
    "writable rows": lambda images, flags: ([row.copy() for row in rows(images)], flags),
    "read-only rows": lambda images, flags: (rows(images), flags),
    "columns": lambda images, flags: ([row.copy()[:, None] for row in rows(images)], flags),
    "turned columns": lambda images, flags: ([row[None].T for row in rows(images)], flags),
    "signed rows": lambda images, flags: ([row.view(np.int8) for row in rows(images)], flags),
    "views of bytes": lambda images, flags: (list(map(pickle.PickleBuffer, images)), flags),
    "views of byte arrays": lambda images, flags: (
        [pickle.PickleBuffer(bytearray(data)) for data in images],
        flags,
    ),
    "an array of objects": lambda images, flags: (np.array([*images, None], object)[:-1], flags),
    "objects that are rows": lambda images, flags: (
        np.array([*rows(images), None], object)[:-1],
        np.array(flags, object),
    ),
    "an array of flags": lambda images, flags: (images, np.array(flags)),
    "floats": lambda images, flags: (images, [float(flag) for flag in flags]),
    "integers": lambda images, flags: (images, [int(flag) for flag in flags]),
    "numpy's floats": lambda images, flags: (images, list(np.array(flags, np.float32))),
    "an array of floats": lambda images, flags: (images, np.array(flags, np.float64)),
    "arrays of one flag": lambda images, flags: (images, [np.array([flag]) for flag in flags]),
    "arrays of no dimension": lambda images, flags: (images, [np.array(flag) for flag in flags]),
    "big-endian flags": lambda images, flags: (images, np.array(flags, ">f8")),
    "tuples": lambda images, flags: (tuple(images), tuple(flags)),
    "a list of the two": lambda images, flags: [images, flags],
}


@pytest.mark.parametrize(
    ("packer", "protocol"),
    [(name, n) for name in PACKERS for n in range(6) if n == 5 or "views" not in name],
)
def test_whatever_a_packer_writes(tmp_path, packer, protocol):
    images = [simplejpeg.encode_jpeg(picture(k // 2, k), 90) for k in range(4)]
    flags = [True, False]
    values = PACKERS[packer](images, flags)
    (tmp_path / "a.bin").write_bytes(pickle.dumps(values, protocol))
    found = load_bin(tmp_path / "a.bin")
    assert found.issame.dtype == bool and found.issame.tolist() == flags
    assert (found.images == np.stack([decode(data) for data in images])).all()


def test_images_of_another_size_are_said(tmp_path, capsys):
    images = [simplejpeg.encode_jpeg(picture(0, k, size), 95) for k, size in ((0, 112), (1, 96))]
    load_bin(write_bin(tmp_path / "a.bin", images, [True]))
    assert "1 of 2 images are not 112x112 (image 1 is 96x96)" in capsys.readouterr().out
    load_bin(write_bin(tmp_path / "a.bin", images[:1] * 2, [True]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", [2, 0.5, float("nan"), "1", b"1", None, np.array([1, 0]), [True]])
def test_flags_that_say_nothing(tmp_path, flag):
    image = simplejpeg.encode_jpeg(picture(0, 0), 90)
    with pytest.raises(BctError, match="flag 1 says neither same nor different"):
        load_bin(write_bin(tmp_path / "a.bin", [image] * 4, [True, flag]))


def test_numpy_flags_and_other_sizes(tmp_path):
    images = [simplejpeg.encode_jpeg(picture(0, k, 128), 95) for k in range(2)]
    found = load_bin(write_bin(tmp_path / "a.bin", images, list(np.array([True]))))
    assert found.issame.tolist() == [True] and found.images.shape == (2, 112, 112, 3)
    # resized, not cropped: the mean colour stays
    assert abs(found.images[0].mean() - decode(images[0]).mean()) < 1


def test_real_files(shared):
    lfw = load_bin(shared / "data/lfw/lfw_devtest.bin")
    assert len(lfw.issame) == 1000 and len(lfw.images) == 2000
    small = load_bin(shared / "data/insightface_small_lfw/small_lfw.bin")
    assert len(small.issame) == 10 and small.issame.all()


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch evil_was_here",)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (pickle.dumps(Evil()), r"it asks for (posix|os|nt)\.system"),
        (pickle.dumps(([np.float64], [True])), "it asks for numpy.float64"),
        (b"no pickle at all", "not a verification set"),
        (pickle.dumps(([b"x"], [True])), "1 images for 1 pairs"),
        (pickle.dumps(([b"x", b"y"], [True])), "image 0 is broken"),
        (pickle.dumps(17), "not a verification set"),
    ],
)
def test_refused(tmp_path, monkeypatch, content, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(BctError) as info:
        load_bin(tmp_path / "a.bin")
    assert re.search(word, str(info.value)), str(info.value)
    assert not (tmp_path / "evil_was_here").exists()


def test_missing(tmp_path):
    with pytest.raises(BctError, match="does not exist"):
        load_bin(tmp_path / "lfw.bin")


def insightface_accuracy(first, second, issame):
    """The protocol spelt out: for every fold the best threshold of the other nine."""
    first = first / np.linalg.norm(first, axis=1)[:, None]
    second = second / np.linalg.norm(second, axis=1)[:, None]
    distance = ((first - second) ** 2).sum(1)
    scores = []
    for fold in np.array_split(np.arange(len(issame)), 10):
        rest = np.setdiff1d(np.arange(len(issame)), fold)
        right = [((distance[rest] < t) == issame[rest]).mean() for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[int(np.argmax(right))]
        scores.append(((distance[fold] < threshold) == issame[fold]).mean())
    return np.mean(scores), np.std(scores)


def test_accuracy_is_insightfaces():
    rng = np.random.default_rng(0)
    issame = rng.random(203) < 0.5  # does not divide by ten
    first = rng.standard_normal((203, 16))
    second = np.where(
        issame[:, None], first + rng.standard_normal((203, 16)), rng.standard_normal((203, 16))
    )
    result = accuracy(first, second, issame)
    assert (result.mean, result.std) == pytest.approx(insightface_accuracy(first, second, issame))
    assert 0.6 < result.mean < 1
    norms = [np.linalg.norm(v) for v in (*first, *second)]
    assert result.xnorm == pytest.approx(np.mean(norms))


def test_sets_of_one_kind_and_of_one_pair():
    images = np.zeros((4, 112, 112, 3), np.uint8)
    for flags, only in (
        ([True, True], "genuine"),
        ([False] * 2, "impostor"),
        ([True, False], None),
    ):
        assert VerificationSet(Path("toy"), images, np.array(flags), "").only == only
    with pytest.raises(BctError, match="at least two pairs"):
        accuracy(np.ones((1, 4)), np.ones((1, 4)), np.array([True]))


def random_set():
    images = np.stack([picture(i // 2, i) for i in range(14)])
    return VerificationSet(Path("toy"), images, np.arange(7) % 2 == 0, "")


def embeddings():
    torch.manual_seed(0)
    model = get_model("demo_w16", 8).eval()
    return embed_set(model, random_set(), torch.device("cpu"), 4, mirror=True)


def test_embedding_is_image_plus_mirror_image_on_any_number_of_ranks():
    torch.manual_seed(0)
    model = get_model("demo_w16", 8).eval()
    images = torch.from_numpy(random_set().images)
    with torch.inference_mode():
        want = (model(to_network(images)) + model(to_network(images.flip(2)))).numpy()
    for world_size in (1, 3):
        for result in run_on_ranks(world_size, embeddings):
            np.testing.assert_allclose(result, want, atol=1e-4)


def test_verify_pairs_neighbours():
    torch.manual_seed(0)
    model = get_model("demo_w16", 8)
    e = embeddings()
    want = accuracy(e[0::2], e[1::2], random_set().issame)
    assert verify(model, [random_set()], torch.device("cpu"))["toy"] == pytest.approx(
        want, rel=1e-4
    )


@pytest.mark.parametrize("view", [View(pixels="raw"), View(64, pixels="imagenet")])
def test_a_network_sees_faces_as_its_training_did(tmp_path, view):
    """Not as most face networks do: a set's images have a size, not a view."""
    torch.manual_seed(0)
    network = get_model("conv4_w32", 16).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    about = {"network": "conv4_w32", "view": view._asdict()}
    (tmp_path / "model.json").write_text(json.dumps(about))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), np.uint8)
    images = VerificationSet(tmp_path / "x.bin", pixels, np.array([True, False]), "x")
    got = open_model(tmp_path / "model.pt").embed(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS[view.pixels])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (view.size,) * 2, mode="bilinear", antialias=True).round().clamp(0, 255)
    x = (x - mean) / std
    with torch.inference_mode():
        want = network(x) + network(x.flip(3))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
