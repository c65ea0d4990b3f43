"""What a network sees: crops by seed, epoch and index, images of any size, stored vectors."""

import json

import numpy as np
import pytest
import torch
from easydict import EasyDict
from PIL import Image
from support.pictures import picture
from torchvision.transforms import v2

from bct.config import load_config
from bct.data import views
from bct.data.image_set import ImageSet
from bct.data.images import to_network
from bct.data.loader import Loader
from bct.data.sets import open_images
from bct.data.views import View
from bct.errors import BctError
from bct.files import ROOT
from bct.models import widths
from bct.models.about import view_in_manifest, view_of_config, view_of_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 images of 2 classes, each of another size."""
    root = tmp_path_factory.mktemp("images")
    for label in range(2):
        (root / f"class {label}").mkdir()
        for k in range(4):
            image = picture(label, k, 40)[: 28 + 3 * k, : 40 - 2 * k]
            Image.fromarray(image).save(root / f"class {label}" / f"{k}.png")
    return root


def seen(folder, view, epoch=0, train=True, start=0, **options):
    loader = Loader(open_images(folder), 2, CPU, train=train, view=view, **options)
    return {
        int(index): image
        for batch in loader.epoch(epoch, start=start)
        for index, image in zip(batch.index, batch.images, strict=True)
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("crop", ["resized", "shift", "person"])
def test_a_crop_follows_from_seed_epoch_and_index(folder, crop):
    view = View(24, crop, mirror=False, pixels="imagenet")
    first = seen(folder, view, num_workers=0)
    assert {image.shape for image in first.values()} == {(3, 24, 24)} and len(first) == 8
    assert same(first, seen(folder, view, num_workers=2))
    assert not same(first, seen(folder, view, epoch=1, num_workers=0))
    assert not same(first, seen(folder, view, seed=1, num_workers=0))
    rest = seen(folder, view, start=2, num_workers=0)
    assert len(rest) == 4 and same(rest, {k: first[k] for k in rest})


def test_a_shift_is_one_of_torchvisions_crops(folder):
    """Of all offsets of the padded image, and each comes up."""
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(3, 16, 16)
    padded = v2.functional.pad(image, [2], padding_mode="edge")
    crops = {
        padded[:, y : y + 16, x : x + 16].numpy().tobytes() for y in range(5) for x in range(5)
    }
    view = views.transform(View(16, "shift", False, "imagenet"), train=True)
    torch.manual_seed(0)
    pixels = image.permute(1, 2, 0).numpy()
    seen = {np.ascontiguousarray(view(pixels).transpose(2, 0, 1)).tobytes() for _ in range(400)}
    assert seen == crops


def test_crops_draw_nothing_from_the_global_random_stream(folder):
    after = []
    for crop in ("none", "resized"):
        torch.manual_seed(3)
        seen(folder, View(24, crop, False, "imagenet"), num_workers=0)
        after.append(torch.rand(4))
    assert torch.equal(*after)


def normalised(images):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    return {k: to_float(torch.from_numpy(np.array(v)).permute(2, 0, 1)) for k, v in images.items()}


@pytest.mark.parametrize(
    ("view", "resize"),
    [
        (View(28, "resized", True, "imagenet"), v2.Compose([v2.Resize(32), v2.CenterCrop(28)])),
        (View(28, "shift", False, "imagenet"), v2.Resize((28, 28))),
        (View(28, "none", True, "imagenet"), v2.Resize((28, 28))),
        (View(28, "person", True, "imagenet"), v2.Resize((28, 28))),
    ],
)
def test_evaluation_sees_torchvisions_transform(folder, view, resize):
    faces = open_images(folder)
    got = seen(folder, view, train=False, num_workers=0)
    pixels = {k: torch.from_numpy(faces.image(k).copy()).permute(2, 0, 1) for k in range(8)}
    want = normalised({k: resize(x).permute(1, 2, 0).numpy() for k, x in pixels.items()})
    for k in range(8):
        torch.testing.assert_close(got[k], want[k], atol=1e-5, rtol=0)


def test_a_face_of_another_size_is_refused(folder):
    with pytest.raises(BctError, match="not aligned"):
        seen(folder, View(24), num_workers=0)


class Small(ImageSet):
    """8 images of one size in memory, as CIFAR's are."""

    native, path, num_classes = 12, "small", 1
    labels = np.zeros(8, np.int64)

    def __len__(self):
        return 8

    def image(self, index):
        return picture(index, 0, 12)

    def load(self, index, out):
        out[:] = self.image(index)
        return 0


def test_images_of_one_small_size_are_resized_on_the_device():
    view = View(18, "none", mirror=False, pixels="imagenet")
    loader = Loader(Small(), 4, CPU, view=view, num_workers=1)
    assert loader.decoder.shape == (12, 12, 3)
    for batch in loader.epoch():
        for index, image in zip(batch.index.tolist(), batch.images, strict=True):
            resized = v2.functional.resize(
                torch.from_numpy(picture(index, 0, 12)).permute(2, 0, 1), [18, 18], antialias=True
            )
            want = normalised({0: resized.permute(1, 2, 0).numpy()})[0]
            torch.testing.assert_close(image, want, atol=1.01 / 255 / 0.224, rtol=0)
    assert Loader(Small(), 4, CPU, view=View(18, "shift"), num_workers=0).decoder.shape[0] == 18


class Rows:
    """Stored vectors."""

    native, resizable, vectors, chosen = None, False, True, None
    width, path, num_classes = 5, "rows", 9
    labels = np.arange(9)
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)

    def __len__(self):
        return 9

    def vector(self, index):
        return self.rows[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_vectors_take_the_same_path(workers):
    loader = Loader(Rows(), 2, CPU, num_workers=workers)
    seen = []
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            np.testing.assert_array_equal(batch.images.numpy(), Rows.rows[batch.index.numpy()])
            assert batch.images.dtype == torch.float32 and torch.equal(batch.labels, batch.index)
            seen.append(batch)
    kept = torch.cat([batch.images for batch in seen])  # no batch was overwritten by a later one
    np.testing.assert_array_equal(
        kept.numpy(), Rows.rows[torch.cat([batch.index for batch in seen]).numpy()]
    )


def test_a_view_is_written_and_read_back(tmp_path):
    cfg = EasyDict(network="conv4_w32", image_size=64, augment="resized_crop", pixels="imagenet")
    view = view_of_config(cfg)
    assert view == View(64, "resized", True, "imagenet")
    (tmp_path / "model.json").write_text(json.dumps({"view": view._asdict()}))
    assert view_of_model(tmp_path / "model.pt") == view
    assert view_of_model(tmp_path / "other.pt") == View()
    for wrong in ({"size": 3, "zoom": 1}, {**view._asdict(), "crop": "oval"}, 7):
        (tmp_path / "model.json").write_text(json.dumps({"view": wrong}))
        with pytest.raises(BctError, match="no view of ours"):
            view_of_model(tmp_path / "model.pt")


PEOPLE = View((256, 128), "person", True, "imagenet")


def test_people_are_moved_over_black():
    """By up to 10 pixels each way, of which every one comes up."""
    image = np.random.default_rng(0).integers(1, 256, (256, 128, 3), np.uint8)
    padded = np.pad(image, ((10, 10), (10, 10), (0, 0)))
    view, found = views.transform(PEOPLE, train=True), []
    torch.manual_seed(0)
    for _ in range(400):
        seen = view(image)
        if (seen == (124, 116, 104)).all(2).sum() > 100:  # erased: the next test's
            continue
        black = (seen == 0).all(2)
        rows, columns = black.all(1), black.all(0)
        y = 10 - int(rows.sum()) if rows[0] else 10 + int(rows.sum())
        x = 10 - int(columns.sum()) if columns[0] else 10 + int(columns.sum())
        assert (seen == padded[y : y + 256, x : x + 128]).all()
        found.append((y, x))
    assert {y for y, _ in found} == {x for _, x in found} == set(range(21))


def test_half_of_the_people_lose_a_rectangle_which_becomes_zero():
    image = np.full((256, 128, 3), 255, np.uint8)
    view, areas, aspects = views.transform(PEOPLE, train=True), [], []
    torch.manual_seed(0)
    for _ in range(1000):
        lost = (view(image) == (124, 116, 104)).all(2)
        rows, columns = np.flatnonzero(lost.any(1)), np.flatnonzero(lost.any(0))
        areas.append(lost.sum() / lost.size)
        if len(rows):
            assert lost[np.ix_(rows, columns)].all() and lost.sum() == len(rows) * len(columns)
            aspects.append(len(rows) / len(columns))
    erased = np.array(areas)[np.array(areas) > 0]
    assert abs(len(erased) / 1000 - 0.5) < 0.06
    assert erased.min() > 0.018 and 0.35 < erased.max() < 0.41
    assert 0.28 < min(aspects) < 0.45 and 2.5 < max(aspects) < 3.6
    mean = torch.tensor([[[[124, 116, 104]]]], dtype=torch.uint8)
    assert to_network(mean, None, *views.PIXELS["imagenet"]).abs().max() < 0.01


def test_smaller_people_are_moved_less():
    assert [views._padding(PEOPLE._replace(size=size)) for size in ((256, 128), 64, 8)] == [
        10,
        2,
        1,
    ]


OBLONG = View((36, 20), "none", False, "imagenet")


@pytest.mark.parametrize("crop", views.CROPS)
def test_people_are_higher_than_wide(folder, crop):
    view = OBLONG._replace(crop=crop)
    for workers in (0, 2):
        found = seen(folder, view, num_workers=workers)
        assert {image.shape for image in found.values()} == {(3, 36, 20)} and len(found) == 8
    blank = Loader(open_images(folder), 2, CPU, view=view, num_workers=0).blank(3)
    assert blank.shape == (3, 3, 36, 20)


def test_evaluation_of_people_sees_torchvisions_resize(folder):
    images = open_images(folder)
    found = seen(folder, OBLONG, train=False, num_workers=0)
    resize = v2.Resize((36, 20))
    pixels = {k: torch.from_numpy(images.image(k).copy()).permute(2, 0, 1) for k in range(8)}
    want = normalised({k: resize(x).permute(1, 2, 0).numpy() for k, x in pixels.items()})
    for k in range(8):
        torch.testing.assert_close(found[k], want[k], atol=1e-5, rtol=0)


def test_the_centre_of_what_covers_an_oblong_keeps_the_aspect():
    centre = views.transform(View((32, 16), "resized", False, "imagenet"), train=False)
    gradient = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None, None], (80, 80, 3))
    rows, columns = centre(gradient), centre(gradient.transpose(1, 0, 2))
    assert rows.shape == columns.shape == (32, 16, 3)
    # 80 pixels become 37, of which 32 or 16 in the middle are seen: as steep in both directions
    for line in (rows[4:-4, 0, 0], columns[0, 2:-2, 0]):
        steps = np.diff(line.astype(float))
        assert abs(steps.mean() - 80 / 37) < 0.2


def test_small_images_of_one_size_become_oblong_on_the_device():
    loader = Loader(Small(), 4, CPU, view=View((18, 9), "none", False, "imagenet"), num_workers=1)
    assert loader.decoder.shape == (12, 12, 3)
    assert {batch.images.shape for batch in loader.epoch()} == {(4, 3, 18, 9)}


def test_an_oblong_view_is_written_and_read_back(tmp_path):
    about = tmp_path / "model.json"
    about.write_text(json.dumps({"view": OBLONG.entries}))
    assert json.loads(about.read_text())["view"]["size"] == [36, 20]
    assert view_of_model(tmp_path / "model.pt") == OBLONG and OBLONG.shape == (36, 20)
    assert view_in_manifest(OBLONG) == [[36, 20], "none", "imagenet"]
    about.write_text(json.dumps({"view": {**OBLONG.entries, "size": [64, 64]}}))
    assert view_of_model(tmp_path / "model.pt").size == 64
    for wrong in ([64], [64, 0], [64, 1.5], [64, 64, 3], [], "64", [[64, 64]], [4097, 64]):
        about.write_text(json.dumps({"view": {**OBLONG.entries, "size": wrong}}))
        with pytest.raises(BctError, match="no view of ours"):
            view_of_model(tmp_path / "model.pt")


def test_faces_are_square():
    cfg = load_config(ROOT / "configs" / "ms1mv3_r50.py", ["image_size=(256, 128)"])
    with pytest.raises(BctError, match="takes images of 112 pixels, image_size is 256 x 128"):
        view_of_config(cfg)


def test_every_word_of_the_config_is_a_view():
    for word in views.AUGMENT:
        cfg = load_config(ROOT / "configs" / "ms1mv3_r50.py", [f"augment={word}"])
        assert view_of_config(cfg).crop in views.CROPS


def test_widths_meet():
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(widths.fit(x, 3, "equal"), x)
    assert torch.equal(widths.fit(x, 2, "leading"), x[:, :2])
    assert torch.equal(widths.fit(x, 5, "zero_pad")[:, 3:], torch.zeros(2, 2))
    for old, policy in ((2, "equal"), (4, "leading"), (2, "zero_pad")):
        with pytest.raises(BctError, match=f"3 dimensions, old ones {old}"):
            widths.fit(x, old, policy)
