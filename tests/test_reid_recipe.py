"""Re-identification's recipe as a whole, on drawn people: oblong images, augmented, in batches of
classes, with triplets and centres; what comes out is a model like any other."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.old_models import tool
from support.pictures import picture
from support.ranks import run_on_ranks
from support.tiny import assert_same_run, stopping_at

from bct.config import load_config
from bct.data.sets import open_images
from bct.data.views import View
from bct.errors import BctError
from bct.files import ROOT
from bct.method import Method, load_method
from bct.models.about import view_of_model
from bct.models.model import open_model
from bct.old_model import OldModel
from bct.train import train
from bct.training.checkpoint import checkpoints

CPU = torch.device("cpu")
VIEW = View((32, 16), "person", True, "imagenet")
RECIPE = [
    *("network=conv4_w32", "embedding_size=8", "pixels=imagenet", "image_size=(32, 16)"),
    *("augment=person", "images_per_class=2", "batch_size=6", "triplet_weight=1"),
    *("centre_weight=0.0005", "label_smoothing=0.1", "head=softmax", "head_bias=False"),
    *("head_init=0.001", "lr=0.008", "weight_decay=1e-4", "bias_lr_factor=2", "num_epoch=3"),
    *("lr_policy=timm_cosine", "lr_steps=epoch", "lr_floor=0.002", "warmup_epoch=1"),
    *("warmup_from=0.01", "num_workers=1", "amp=off", "frequent=1"),
]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """6 people with 3 to 5 images, each of another size."""
    root = tmp_path_factory.mktemp("people")
    for one in range(6):
        (root / f"{one:04}").mkdir()
        for k in range(3 + one % 3):
            image = picture(one, k, 64)[:, : 30 + 3 * k]
            Image.fromarray(image).save(root / f"{one:04}" / f"{k}.png")
    return root


def settings(people, output, *more):
    return load_config(
        ROOT / "configs" / "base.py", [*RECIPE, f"rec={people}", f"output={output}", *more]
    )


@pytest.fixture(scope="module")
def trained(people, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    assert train(settings(people, output), Method, CPU) == 0
    return output


def test_a_run_goes_on_where_it_was_stopped(people, trained, tmp_path):
    steps = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in steps if "loss" in line]
    assert len(losses) == 9 and np.isfinite(losses).all()
    cfg = settings(people, tmp_path / "run")
    assert train(cfg, stopping_at(Method, 5), CPU) != 0  # in the middle of an epoch
    assert train(settings(people, tmp_path / "run", "resume=True"), Method, CPU) == 0
    assert_same_run(tmp_path / "run", trained)


def on_ranks(people, output):
    assert train(settings(people, output, "num_workers=0"), Method, CPU) == 0


def test_ranks_train_it_together(people, tmp_path):
    run_on_ranks(2, on_ranks, people, tmp_path / "run")
    saved = torch.load(checkpoints(tmp_path / "run")[0], weights_only=True)
    assert saved["progress"]["step"] == 3 * (9 // 3 // 2)
    assert saved["head"]["metric.centres"].isfinite().all()


def test_the_model_says_how_it_sees_people(people, trained, tmp_path):
    said = json.loads((trained / "model.json").read_text())
    assert said["view"] == {**VIEW._asdict(), "size": [32, 16]}
    assert view_of_model(trained / "model.pt") == VIEW
    model, images = open_model(trained), open_images(people)
    rows = model.embed(images, tmp_path / "cache")
    assert rows.shape == (len(images), 8) and np.isfinite(rows).all()
    assert model.fingerprint.view == {"size": [32, 16], "crop": "person", "pixels": "imagenet"}
    model.fingerprint.save(tmp_path / "space.json")
    model.fingerprint.require_same(type(model.fingerprint).load(tmp_path / "space.json"))
    again = open_model(trained).embed(images, tmp_path / "cache")
    assert np.array_equal(rows, again) and len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_it_is_an_old_model_for_others(people, trained, tmp_path):
    """By its stored embeddings, and as a network that sees each batch."""
    tool("extract_features", "--model", trained, "--rec", people)
    upgrade = f"old_model={trained}", "num_epoch=1"
    cfg = settings(people, tmp_path / "run", *upgrade)
    L2 = load_method("L2")
    cfg = load_config(
        ROOT / "configs" / "base.py",
        [*RECIPE, f"rec={people}", f"output={tmp_path / 'run'}", *upgrade],
        L2.defaults,
    )
    assert train(cfg, L2, CPU) == 0
    old = OldModel(cfg, open_images(people), L2.needs(cfg))
    images = torch.randn(2, 3, 32, 16)
    assert old.network()(images).shape == (2, 8)
    cfg.image_size = 32
    old = OldModel(cfg, open_images(people), L2.needs(cfg))
    with pytest.raises(BctError, match="sees images of 32 x 16 pixels, this training of 32"):
        old.network()


def test_import_and_onnx_keep_both_sides(people, trained, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    tool("export_onnx", trained / "model.pt", "-o", tmp_path / "people.onnx")
    graph = onnx.load(tmp_path / "people.onnx").graph
    sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim[1:]]
    assert sides == [3, 32, 16]
    words = "--crop", "none", "--pixels", "imagenet"
    tool("import_model", tmp_path / "people.onnx", *words, "-o", tmp_path / "onnx")
    tool("import_model", trained / "model.pt", "-o", tmp_path / "torch", "--network", "conv4_w32")
    assert "imagenet pixels, 32 x 16, crop person" in capsys.readouterr().out
    images = open_images(people)
    rows = [open_model(tmp_path / name).embed(images) for name in ("onnx", "torch")]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)
    state = tmp_path / "bare.pt"
    state.write_bytes((trained / "model.pt").read_bytes())
    words += "--network", "conv4_w32", "--image-size", "(32,16)"
    tool("import_model", state, *words, "-o", tmp_path / "bare")
    assert view_of_model(tmp_path / "bare" / "model.pt").shape == (32, 16)
    np.testing.assert_array_equal(open_model(tmp_path / "bare").embed(images), rows[1])
    rows = tmp_path / "rows.npy"
    tool("embed", people, "-m", trained, "-o", rows)
    assert np.load(rows).shape == (len(images), 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batch_size=5"], "batch_size = 5 is no multiple of images_per_class = 2"),
        (["batch_size=14"], "6 classes do not fill a batch of 7 classes"),
        (["images_per_class=none"], "triplet_weight = 1.0 needs several images of each class"),
    ],
)
def test_what_can_not_be_trained_leaves_nothing(people, tmp_path, words, said):
    with pytest.raises(BctError, match=said):
        train(settings(people, tmp_path / "run", *words), Method, CPU)
    assert not (tmp_path / "run").exists()
