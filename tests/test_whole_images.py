"""How the standard protocol shows images: boxes, aspect kept, several scales, grey and CMYK."""

import io
import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support.ranks import run_on_ranks
from torch import nn
from torch.nn import functional as F

from bct.data.cropped import Cropped, crop_box
from bct.data.image_set import Joined
from bct.data.listed_images import ListedImages
from bct.data.views import View
from bct.errors import BctError
from bct.models.embed import embed_models, made_from
from bct.models.whole_images import SCALES, Whole

CPU = torch.device("cpu")


class Pooled(nn.Module):
    """A convolution and the mean over its map, which takes images of any size."""

    embedding_size = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, 2)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return F.relu(self.layer(x)).mean((2, 3))


class Fixed(nn.Module):
    """A network for images of 32 x 32 only."""

    embedding_size = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Given:
    """A model as the embedding loop wants it."""

    file, network, sha256, dtype, pixels = "given.pt", "x", "0" * 64, None, "imagenet"

    def __init__(self, network, size=32):
        torch.manual_seed(0)
        self.view = View(size, "none", False, "imagenet")
        self.backbone = network.eval()
        self.width = network.embedding_size


def jpeg(folder, name, mode, size, seed=0, **options):
    """A smooth picture in the mode; what it is in RGB by Pillow."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, (6, 5, 3), np.uint8)).resize(size, Image.BICUBIC)
    out = io.BytesIO()
    image.convert(mode).save(out, "JPEG", quality=95, **options)
    (folder / name).write_bytes(out.getvalue())
    with Image.open(io.BytesIO(out.getvalue())) as file:
        assert file.mode == mode
        return np.asarray(file.convert("RGB")).astype(int)


@pytest.fixture
def images(tmp_path):
    names = []
    for k, size in enumerate([(40, 30), (30, 60), (50, 50), (64, 20)]):
        names.append(b"%d.jpg" % k)
        jpeg(tmp_path, f"{k}.jpg", "RGB", size, seed=k)
    return ListedImages(tmp_path / "list", tmp_path, names)


def by_hand(network, image, size, scales, mirror=False):
    """The unit sum of unit embeddings, in float64 but for the network."""
    height, width = image.shape[:2]
    total = 0
    for scale in scales:
        factor = round(size * scale) / max(height, width)
        shape = [max(1, round(side * factor)) for side in (height, width)]
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        if shape != [height, width]:
            x = F.interpolate(x, shape, mode="bilinear", antialias=True).round().clamp(0, 255)
        mean, std = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            out = network(x) + (network(x.flip(3)) if mirror else 0)
        out = out[0].double().numpy()
        total = total + out / np.linalg.norm(out)
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mirror", [False, True])
def test_sum_over_scales(images, workers, mirror):
    model = Given(Pooled())
    rows = embed_models(
        {"m": model}, images, mirror=mirror, num_workers=workers, whole=Whole(48)
    )["m"]  # fmt: skip
    for k in range(4):
        wanted = by_hand(model.backbone, images.image(k), 48, SCALES, mirror)
        np.testing.assert_allclose(rows[k], wanted, atol=1e-6)
    one = embed_models({"m": model}, images, num_workers=0, whole=Whole(48, (1.0,)))["m"]
    assert not np.allclose(rows, one, atol=1e-3)


def test_aspect_is_kept_and_one_image_goes_at_a_time(images):
    model = Given(Pooled())
    embed_models({"m": model}, images, num_workers=0, whole=Whole(48), batch_size=4)
    shapes = [shape[2:] for shape in model.backbone.seen]
    assert {shape[0] for shape in model.backbone.seen} == {1}
    assert shapes[:3] == [(26, 34), (36, 48), (51, 68)]
    assert shapes[3:6] == [(34, 17), (48, 24), (68, 34)]
    assert Whole().size == 1024
    assert Whole().shapes(768, 1024) == [(543, 724), (768, 1024), (1086, 1448)]
    assert Whole().shapes(1, 5000) == [(1, 724), (1, 1024), (1, 1448)]
    assert pytest.approx((0.5**0.5, 1, 2**0.5)) == SCALES


def test_the_cache_knows_scales_sizes_and_boxes(images, tmp_path):
    model = Given(Pooled())
    boxed = Cropped(images, np.tile([2.0, 2, 14, 12], (4, 1)))
    other = Cropped(images, np.tile([2.0, 2, 15, 12], (4, 1)))
    ways = [
        (images, None),
        (images, Whole(48)),
        (images, Whole(40)),
        (images, Whole(48, (1.0,))),
        (images, Whole(48, (1.0, 0.5))),
        (boxed, None),
        (boxed, Whole(48)),
        (other, Whole(48)),
        (Joined([boxed, images]), Whole(48)),
        (Joined([other, images]), Whole(48)),
    ]
    about = [str(made_from(model, seen, False, whole)) for seen, whole in ways]
    assert len(set(about)) == len(ways)
    found = [embed_models({"m": model}, seen, tmp_path, whole=whole)["m"] for seen, whole in ways]
    assert len(list(tmp_path.glob("*.npy"))) == len(ways)
    calls = len(model.backbone.seen)
    again = [embed_models({"m": model}, seen, tmp_path, whole=whole)["m"] for seen, whole in ways]
    assert len(model.backbone.seen) == calls
    for one, two in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_network_for_one_size_is_refused(images):
    with pytest.raises(BctError, match="takes no image of 34x26 pixels") as error:
        embed_models({"m": Given(Fixed())}, images, num_workers=0, whole=Whole(48))
    assert "GeM" in error.value.do


def test_squashed_as_published(images):
    model = Given(Pooled())
    rows = embed_models({"m": model}, images, num_workers=0, batch_size=4)["m"]
    assert model.backbone.seen == [(4, 3, 32, 32)]
    assert rows.shape == (4, 6)


def test_broken_and_missing_images_are_named(images):
    images.root.joinpath("2.jpg").write_bytes(b"\xff\xd8 nothing")
    for workers in (0, 3):
        with pytest.raises(BctError, match=r"2\.jpg is broken"):
            embed_models({"m": Given(Pooled())}, images, num_workers=workers, whole=Whole(48))


@pytest.mark.parametrize("size", [(48, 64), (64, 48)])
def test_grey_and_cmyk_become_rgb(tmp_path, size):
    names, wanted = [], []
    for k, (mode, options) in enumerate([("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})]):
        names.append(b"%d.jpg" % k)
        wanted.append(jpeg(tmp_path, f"{k}.jpg", mode, size, seed=7, **options))
    images = ListedImages(tmp_path / "list", tmp_path, names)
    boxed = Cropped(images, np.tile([3.0, 4, 40, 30], (3, 1)))
    for k in range(3):
        image = images.image(k)
        assert image.shape == (*size[::-1], 3)
        assert image.dtype == np.uint8
        assert np.abs(image - wanted[k]).max() <= 3  # two decoders
        assert (boxed.image(k) == image[4:30, 3:40]).all()
    grey, cmyk, colour = (images.image(k).astype(int) for k in range(3))
    assert (grey == grey[:, :, :1]).all()
    assert np.abs(cmyk - colour).mean() < 6
    rows = embed_models({"m": Given(Pooled())}, images, whole=Whole(48))["m"]
    assert np.isfinite(rows).all()


def test_boxes_are_cut_as_pillow_does(images):
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top = rng.uniform(0, 20, 2)
        box = np.array([left, top, left + rng.uniform(1, 9), top + rng.uniform(1, 9)])
        rows, columns = crop_box(box, 30, 40)
        wanted = np.asarray(Image.fromarray(images.image(0)).crop(tuple(box)))
        assert (images.image(0)[rows, columns] == wanted).all()
    assert crop_box(np.array([0.5, 1.5, 2.5, 3.5]), 9, 9) == (slice(2, 4), slice(0, 2))
    assert crop_box(np.array([-5.0, -5, 99, 99]), 9, 7) == (slice(0, 9), slice(0, 7))


def test_boxes_that_are_none(images):
    for box in ([5, 5, 5, 9], [9, 0, 1, 5], [0, 0, math.nan, 5], [0, 0, math.inf, 5]):
        with pytest.raises(BctError, match="no boxes of 4 images"):
            Cropped(images, np.tile(box, (4, 1)))
    with pytest.raises(BctError, match="no boxes of 4 images"):
        Cropped(images, np.tile([0, 0, 5, 5], (3, 1)))
    outside = Cropped(images, np.tile([41, 0, 50, 5], (4, 1)))
    with pytest.raises(BctError, match=r"lies outside of .*0\.jpg, which is 40x30"):
        outside.image(0)
    out = np.zeros((5, 9, 3), np.uint8)
    assert outside.load(2, out) == -1
    assert (out == images.image(2)[:5, 41:50]).all()
    with pytest.raises(BctError, match="its box is 9x5"):
        outside.load(2, out[:4])


def test_threads_do_not_outlive_the_loop(images):
    before = threading.active_count()
    embed_models({"m": Given(Pooled())}, images, num_workers=3, whole=Whole(48))
    assert threading.active_count() == before
    with pytest.raises(BctError):
        embed_models({"m": Given(Fixed())}, images, num_workers=3, whole=Whole(48))
    assert threading.active_count() == before


def on_a_rank(folder):
    images = ListedImages(folder / "list", folder, [b"%d.jpg" % k for k in range(4)])
    model = Given(Pooled())
    model.backbone.load_state_dict(torch.load(folder / "weights.pt"))
    rows = embed_models({"m": model}, images, num_workers=0, whole=Whole(48))["m"]
    return np.array(rows), len(model.backbone.seen)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_images(images, ranks):
    model = Given(Pooled())
    torch.save(model.backbone.state_dict(), images.root / "weights.pt")
    wanted = embed_models({"m": model}, images, num_workers=0, whole=Whole(48))["m"]
    for rows, seen in run_on_ranks(ranks, on_a_rank, images.root):
        np.testing.assert_array_equal(rows, wanted)
        assert seen == 3 * 4 // ranks  # three scales of each image


def test_a_graph_is_refused(images):
    model = Given(Pooled())
    model.file = "given.onnx"
    with pytest.raises(BctError, match=r"given\.onnx is a graph for images of one size"):
        embed_models({"m": model}, images, whole=Whole(48))
