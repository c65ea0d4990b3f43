"""The one embedding loop: right rows, cached by what they depend on, streamed, on any ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.pictures import picture, write_faces
from support.ranks import run_on_ranks

from backbones import get_model
from bct.data.image_set import ImageSet, Joined
from bct.data.images import to_network
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import ROOT
from bct.models.embed import embed_models
from bct.models.model import open_model, open_models
from bct.rows import row_blocks


class Drawn(ImageSet):
    """So many pictures of one size; `made` counts those that were asked for."""

    resizable, num_classes, made = False, 1, 0

    def __init__(self, count, name="drawn", start=0):
        self.path, self.labels, self.start = Path(name), np.zeros(count, np.int64), start
        self.fingerprint = f"{name} {count}"

    def __len__(self):
        return len(self.labels)

    def load(self, index, out):
        self.made += 1
        out[:] = picture(self.start + index, 0)
        return 0


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    torch.save(get_model("demo_w16", 8).state_dict(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def plain(file, images, mirror=False):
    network = get_model("demo_w16", 8).eval()
    network.load_state_dict(torch.load(file))
    pixels = np.stack([picture(images.start + i, 0) for i in range(len(images))])
    with torch.inference_mode():
        x = to_network(torch.from_numpy(pixels))
        return (network(x) + network(x.flip(3)) if mirror else network(x)).numpy()


def embed(models, images, cache=None, **options):
    return embed_models(models, images, cache, num_workers=0, batch_size=4, **options)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_rows_are_those_of_the_images(model, tmp_path, mirror, cached):
    images = Drawn(11)
    found = embed(
        {"a": open_model(model, "demo_w16")}, images, tmp_path if cached else None, mirror=mirror
    )["a"]
    assert found.dtype == np.float32 and isinstance(found, np.memmap)
    np.testing.assert_allclose(found, plain(model, images, mirror), rtol=1e-5, atol=1e-4)
    # they can be read in blocks, too, though their file has another name by now, or none
    (block,) = (x.numpy() for _, x in row_blocks(found))
    np.testing.assert_array_equal(block, found)


def test_what_a_cache_depends_on(model, tmp_path):
    """Weights, images, mirror image and view. Two labels of one model have one file."""
    cache, images = tmp_path / "cache", Drawn(6)
    one = {"a": open_model(model, "demo_w16")}
    first = embed(one, images, cache)["a"]
    made = images.made
    again = embed(one, images, cache)["a"]
    assert images.made == made and (again == first).all()
    embed({**one, "b": one["a"]}, images, cache)
    assert images.made == made
    torch.manual_seed(1)
    torch.save(get_model("demo_w16", 8).state_dict(), tmp_path / "b.pt")
    seen = {"a": open_model(model, "demo_w16", pixels="raw")}
    for count, (models, other, options) in enumerate(
        [
            ({"a": open_model(tmp_path / "b.pt", "demo_w16")}, images, {}),
            (one, Drawn(7), {}),
            (one, images, {"mirror": True}),
            (seen, images, {}),
        ],
        2,
    ):
        embed(models, other, cache, **options)
        assert len(list(cache.glob("*.npy"))) == count
    np.save(next(iter(cache.glob("*.npy"))), np.zeros((6, 8), np.float32))  # no longer its manifest
    assert (embed(one, images, cache)["a"] == first).all()
    before = images.made
    embed(one, images, cache, reload=True)
    assert images.made > before


def test_models_that_see_alike_share_the_decoding(model, tmp_path):
    torch.manual_seed(1)
    torch.save(get_model("demo_w16", 8).state_dict(), tmp_path / "b.pt")
    images = Drawn(5)
    models = open_models([("a", model, "demo_w16"), ("b", tmp_path / "b.pt", "demo_w16")])
    found = embed(models, images)
    assert images.made == 5
    np.testing.assert_allclose(found["b"], plain(tmp_path / "b.pt", images), rtol=1e-5, atol=1e-4)


def on_a_rank(file, folder):
    return np.array(embed({"a": open_model(file, "demo_w16")}, Drawn(7), folder)["a"])


@pytest.mark.parametrize("cached", [False, True])
def test_ranks_share_the_images_and_all_get_the_rows(model, tmp_path, cached):
    folder = tmp_path / "cache" if cached else None
    for found in run_on_ranks(2, on_a_rank, model, folder):
        np.testing.assert_allclose(found, plain(model, Drawn(7)), rtol=1e-5, atol=1e-4)


def test_joined_sets_are_one_behind_the_other(model, tmp_path):
    sets = [Drawn(3), Drawn(4, "others", start=20)]
    joined = Joined(sets)
    found = embed({"a": open_model(model, "demo_w16")}, joined)["a"]
    want = np.concatenate([plain(model, images) for images in sets])
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)
    np.save(tmp_path / "q.npy", want[:3])
    np.save(tmp_path / "g.npy", want[3:])
    stored = open_model(f"{tmp_path}/q.npy,{tmp_path}/g.npy")
    np.testing.assert_array_equal(embed({"s": stored}, joined)["s"], want)
    with pytest.raises(BctError, match=r"1 file\(s\) of embeddings for 2 set"):
        embed({"s": open_model(tmp_path / "q.npy")}, joined)


def test_stored_embeddings_are_opened_and_of_the_right_number(model, tmp_path):
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.save(tmp_path / "e.npy", rows)
    stored = open_model(tmp_path / "e.npy")
    assert (embed({"s": stored}, Drawn(5))["s"] == rows).all() and stored.width == 3
    with pytest.raises(BctError, match="5 rows for 6 images"):
        embed({"s": stored}, Drawn(6))
    with pytest.raises(BctError, match="holds embeddings, not a network"):
        stored.backbone  # noqa: B018


def test_two_models_of_one_name(model):
    with pytest.raises(BctError, match="two have one name"):
        open_models([("a", model, None), ("a", model, None)])


def test_a_wrong_network_is_refused_even_where_a_cache_would_do(model, tmp_path):
    embed({"a": open_model(model, "demo_w16")}, Drawn(3), tmp_path / "cache")
    with pytest.raises(BctError, match="does not fit network demo_w24"):
        embed({"a": open_model(model, "demo_w24")}, Drawn(3), tmp_path / "cache")


def test_record_files_and_their_names(model, tmp_path):
    write_faces(tmp_path / "people.rec", [2, 3])
    images = open_images(tmp_path / "people.rec")
    embed({"a": open_model(model, "demo_w16")}, images, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert re.fullmatch(r"people_[0-9a-f]{20}\.npy", file.name)


def test_memory_does_not_grow_with_the_rows():
    """benchmarks/embed.py in a small size: what is not the map stays the same."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.embed", "--small"], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown = float(re.search(r"grows by (-?[0-9.]+) MiB", done.stdout)[1])
    assert grown < 30


def test_a_set_of_a_long_name_is_cached_and_found_again(model, tmp_path):
    images = Joined([Drawn(3, "a" * 200), Drawn(3, "é" * 120, start=3)])
    assert len(images.name) > 300
    networks = {"a": open_model(model, "demo_w16")}
    first = embed(networks, images, tmp_path / "cache")["a"]
    (file,) = (tmp_path / "cache").glob("*.npy")
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(embed(networks, images, tmp_path / "cache")["a"], first)
    assert file.stat().st_mtime_ns == before


def test_a_network_that_is_not_for_faces_and_says_no_view_is_refused(tmp_path):
    """It would get aligned faces of 112 pixels, and its figures would be wrong without an error."""
    (tmp_path / "x.pth").touch()
    with pytest.raises(BctError, match="a resnet18, does not say how it sees") as info:
        open_model(tmp_path / "x.pth", "resnet18")
    assert "--pixels imagenet" in info.value.do
    assert open_model(tmp_path / "x.pth", "resnet18", pixels="imagenet").view.pixels == "imagenet"
    open_model(tmp_path / "x.pth", "demo_w16")
