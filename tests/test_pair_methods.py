"""Hot refresh, BCT-RACT and focal distillation beyond faces: a folder of images with a plain
classifier and classes matched by name, and old embeddings whose model is gone."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from support.old_models import CPU, TRAINING, tool
from support.pictures import picture, write_faces
from support.ranks import run_on_ranks

from bct.config import load_config
from bct.method import Method, load_method
from bct.train import train

NAMES = ["b", "a10", "a9", "c"]
METHODS = {
    "HotRefresh": ["topk=3"],
    "BCTRACT": [],
    "FocalDistillation": [],
}


def finite(output):
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    return len(losses) > 0 and np.isfinite(losses).all()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """4 classes of 5 images; the old model has seen two of them."""
    home = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(NAMES):
        for folder in ("all", "half") if name in ("a9", "b") else ("all",):
            (home / folder / name).mkdir(parents=True)
            for k in range(5):
                Image.fromarray(picture(label, k, 32)).save(home / folder / name / f"{k}.png")
    common = (
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.network = 'conv4_w32'\n"
        "config.embedding_size = 8\nconfig.image_size = 28\nconfig.pixels = 'imagenet'\n"
        f"config.head = 'softmax'\nconfig.feature_save = {str(home / 'features')!r}\n"
    )
    (home / "old_class50.py").write_text(f"{common}config.rec = {str(home / 'half')!r}\n")
    (home / "new.py").write_text(
        f"{common}config.rec = {str(home / 'all')!r}\nconfig.scenario = 'EXclass'\n"
        "config.old_config = 'old_class50'\n"
    )
    small = [*TRAINING, "batch_size=4", f"output={home / 'old'}"]
    assert train(load_config(home / "old_class50.py", small), Method, CPU) == 0
    where = f"rec={home / 'all'}", f"output={home / 'old'}", "amp=off", "num_workers=0"
    tool("extract_features", home / "old_class50.py", "--SD", "old_class100", *where)
    tool("average_features", "--SD", "old_class100", "--feature-save", home / "features")
    return home


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("name", METHODS)
def test_a_folder_of_images_with_a_plain_classifier(pictures, tmp_path, name, parity, caplog):
    method = load_method(name)
    given = [*TRAINING, "batch_size=4", f"output={tmp_path}", f"parity={parity}", *METHODS[name]]
    if (name, parity) == ("BCTRACT", "published"):  # which the old classifier can't do: see below
        given.append("influence=prototype")
    cfg = load_config(pictures / "new.py", given, method.defaults)
    with caplog.at_level(logging.INFO):
        assert train(cfg, method, CPU) == 0
    assert finite(tmp_path) and "judge in its place" not in caplog.text


def test_the_old_classifier_is_asked_by_its_own_labels(pictures):
    """a10, a9, b, c are the new classes, a9 and b the old ones."""
    for name in ("BCTRACT", "FocalDistillation"):

        class Watching(load_method(name)):
            def begin_epoch(self, epoch, embed):
                assert self.judge.row.tolist() == [-1, 0, 1, -1]
                assert self.judge.scale is None and len(self.judge.weight) == 2

        Watching.__name__ = name
        given = [*TRAINING, "batch_size=4", "num_epoch=1", f"output={pictures / name}"]
        assert train(load_config(pictures / "new.py", given, Watching.defaults), Watching, CPU) == 0


def train_here(pictures, name, output, parity):
    given = [*TRAINING, "batch_size=4", "num_epoch=1", f"output={output}", f"parity={parity}"]
    given += ["influence=prototype"] if name == "BCTRACT" else []
    method = load_method(name)
    cfg = load_config(pictures / "new.py", [*given, *METHODS[name]], method.defaults)
    assert train(cfg, method, CPU) == 0


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("name", METHODS)
def test_on_two_ranks(pictures, tmp_path, name, parity):
    """Where the head is wrapped."""
    run_on_ranks(2, train_here, pictures, name, tmp_path, parity)
    assert finite(tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_stored_embeddings_of_a_part_whose_model_is_gone(tmp_path, name, caplog):
    """Class 3 has none at all; class means judge, since there is no classifier."""
    counts, width = [4, 6, 4, 5, 4], 16
    labels = np.repeat(np.arange(5), counts)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5, width))[labels] + 0.4 * rng.standard_normal((23, width))
    chosen = np.flatnonzero((np.arange(23) % 4 > 0) & (labels != 3))
    write_faces(tmp_path / "train.rec", counts)
    for what, array in (("feature", rows[chosen]), ("label", labels[chosen]), ("rows", chosen)):
        np.save(tmp_path / f"x_{what}.npy", array)
    files = [tmp_path / f"x_{what}.npy" for what in ("feature", "label")]
    tool("import_features", *files, "--rec", tmp_path / "train.rec", "-o", tmp_path / "old",
         "--rows", tmp_path / "x_rows.npy")  # fmt: skip
    tool("average_features", "--model", tmp_path / "old", "--rec", tmp_path / "train.rec")
    (tmp_path / "job.py").write_text(
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.network = 'demo_w16'\n"
        f"config.embedding_size = {width}\n"
    )
    given = [f"old_model={tmp_path / 'old'}", f"output={tmp_path / 'new'}"]
    given += [f"rec={tmp_path / 'train.rec'}", *TRAINING, *METHODS[name]]
    method = load_method(name)
    with caplog.at_level(logging.INFO):
        assert train(load_config(tmp_path / "job.py", given, method.defaults), method, CPU) == 0
    assert finite(tmp_path / "new")
    assert ("was imported without its model" in caplog.text) == (name != "HotRefresh")
