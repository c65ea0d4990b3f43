"""Every method from records to a model: all terms, both parities, ranks, resuming, scenarios."""

import json
import re
import runpy
import shlex
import sys

import numpy as np
import pytest
import torch
from faces import write_faces
from ranks import run_on_ranks

from bct.config import load_config
from bct.errors import BctError
from bct.files import ROOT, sha256_file
from bct.method import Method
from bct.train import train
from methods import method_class

CPU = torch.device("cpu")
TERMS = {
    "MixBCT": {"cls"},
    "BCT": {"cls", "influence"},
    "UniBCT": {"cls", "influence"},
    "NCCL": {"cls", "feature", "class"},
    "AdvBCT": {"cls", "p2s", "adv"},
    "L2": {"cls", "l2"},
}
SMALL = {"UniBCT": ["refresh_epochs=[0, 2]"], "NCCL": ["queue_size=20"]}
TRAINING = ["batch_size=8", "num_epoch=3", "frequent=1", "num_workers=0", "amp=off", "lr=0.01"]


def tool(name, *arguments):
    """Runs tools/<name>.py in this process, as its command line would."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A data set of 10 identities, its shards, and two softmax old models."""
    folder = tmp_path_factory.mktemp("house")
    write_faces(folder / "train.rec", [4, 6, 4, 4, 5, 4, 7, 4, 4, 4])
    tool("split_dataset", folder / "train.rec", "--ratio", 30)
    common = (
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.embedding_size = 16\n"
        f"config.rec = {str(folder)!r}\nconfig.network = 'demo_w16'\nconfig.amp = 'off'\n"
        f"config.feature_save = {str(folder / 'features')!r}\n"
    )
    for kind in ("class", "data"):
        name, output = f"old_{kind}30", f"config.output = {str(folder / kind)!r}\n"
        (folder / f"{name}.py").write_text(
            f"{common}{output}config.shard = '{kind}30'\nconfig.head = 'softmax'\n"
        )
        old = load_config(folder / f"{name}.py", [*TRAINING, "num_epoch=1"])
        train(old, Method, CPU)
        for shard in (f"{kind}70", f"{kind}100"):
            sd = f"old_{shard}"
            tool("extract_features", folder / f"{name}.py", "--SD", sd, "num_workers=0")
            for other in ("denoise", "average_features", "class_statistics"):
                tool(other, "--SD", sd, "--feature-save", folder / "features")
            tool("denoise", "--by", "entropy", "--T", 1, "--SD", sd,
                 "--feature-save", folder / "features")  # fmt: skip
    (folder / "new.py").write_text(common)
    return folder


def config(house, name, output, *overrides, scenario="OPclass"):
    given = [f"scenario={scenario}", f"old_config=old_{scenario[2:]}30", f"output={output}"]
    arguments = [*given, *TRAINING, *SMALL.get(name, ()), *overrides]
    return load_config(house / "new.py", arguments, method_class(name).defaults)


def terms_of(output):
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return steps, {key for step in steps for key in step if key.startswith("loss/")}


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("name", TERMS)
def test_trains_and_leaves_a_plain_network(house, tmp_path, name, parity):
    old = {p: sha256_file(p) for p in (house / "features").rglob("*.npy")}
    cfg = config(house, name, tmp_path, f"parity={parity}")
    train(cfg, method_class(name), CPU)
    steps, terms = terms_of(tmp_path)
    assert len(steps) == 12 and all(np.isfinite(step["loss"]) for step in steps)
    if len(TERMS[name]) > 1:
        assert terms == {f"loss/{term}" for term in TERMS[name]}
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    alone = config(house, name, tmp_path / "alone")
    train(alone, Method, CPU)
    without = torch.load(tmp_path / "alone" / "model.pt", weights_only=True)
    assert weights.keys() == without.keys()  # no discriminator, no prototypes
    assert not torch.equal(weights["fc.weight"], without["fc.weight"])
    assert old == {p: sha256_file(p) for p in (house / "features").rglob("*.npy")}


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", TERMS)
def test_a_resumed_run_ends_with_the_same_weights(house, tmp_path, name):
    original = method_class(name)

    class Stopping(original):
        calls = 0

        def forward(self, *arguments):
            Stopping.calls += 1
            if Stopping.calls > 9:  # in the third epoch of four steps
                raise Interrupted
            return super().forward(*arguments)

    Stopping.__name__ = name  # the run must not be able to tell
    train(config(house, name, tmp_path / "whole"), original, CPU)
    with pytest.raises(Interrupted):
        train(config(house, name, tmp_path / "cut"), Stopping, CPU)
    train(config(house, name, tmp_path / "cut", "resume=True"), original, CPU)
    a, b = (torch.load(tmp_path / d / "model.pt", weights_only=True) for d in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def train_here(house, name, output, parity):
    train(config(house, name, output, "batch_size=4", f"parity={parity}"), method_class(name), CPU)


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("name", TERMS)
def test_trains_on_two_ranks(house, tmp_path, name, parity):
    run_on_ranks(2, train_here, house, name, tmp_path, parity)
    steps, _ = terms_of(tmp_path)
    assert len(steps) == 12 and all(np.isfinite(step["loss"]) for step in steps)


@pytest.mark.parametrize("scenario", ["OPclass", "OPdata", "EXclass", "EXdata"])
@pytest.mark.parametrize("name", TERMS)
def test_every_scenario(house, tmp_path, name, scenario):
    cfg = config(house, name, tmp_path, "num_epoch=1", scenario=scenario)
    train(cfg, method_class(name), CPU)
    classes, images = {
        "OPclass": (7, 32), "OPdata": (10, 46 - 13), "EXclass": (10, 46), "EXdata": (10, 46),
    }[scenario]  # fmt: skip
    assert (cfg.num_classes, cfg.num_image) == (classes, images)


@pytest.mark.parametrize(
    ("influence", "scenario", "seen"),
    [
        ("old_classifier", "EXclass", 3),
        ("old_classifier", "EXdata", 10),
        ("prototype", "EXclass", 3),
    ],
)
def test_bct_knows_what_the_old_model_has_seen(house, tmp_path, influence, scenario, seen):
    overrides = f"influence={influence}", "unseen=ignore", "num_epoch=1"
    cfg = config(house, "BCT", tmp_path, *overrides, scenario=scenario)

    class Watching(method_class("BCT")):
        def begin_epoch(self, epoch, embed):
            assert self.seen == seen
            if influence == "old_classifier":
                saved = torch.load(house / scenario[2:] / "model.pt", weights_only=True)
                assert torch.equal(self.weight, saved["cls_fc.weight"])

    train(cfg, Watching, CPU)
    _, terms = terms_of(tmp_path)
    assert "loss/influence" in terms


def test_nccl_with_the_credibility_filter(house, tmp_path):
    train(config(house, "NCCL", tmp_path, "credible=True", "T=1.0"), method_class("NCCL"), CPU)
    assert terms_of(tmp_path)[0][-1]["loss/feature"] > 0


@pytest.mark.parametrize("name", TERMS)
def test_a_missing_artefact_names_the_command_that_makes_it(house, tmp_path, name):
    """With nothing but the old model, doing what the errors say leads to a run that trains."""
    saved = f"feature_save={tmp_path / 'nothing yet'}"
    given = saved, "num_epoch=1"
    if name == "BCT":  # reads no embeddings itself; the tool it names says that they are missing
        tool("extract_features", house / "old_class30.py", "--SD", "old_class70", saved)
    more = ("credible=True",) if name == "NCCL" else ()
    for _ in range(5):
        try:
            train(config(house, name, tmp_path / "run", *given, *more), method_class(name), CPU)
        except BctError as error:
            command = re.search(r"make it with: python tools/(\w+)\.py (.*)", str(error))
            assert command, str(error)
            words = shlex.split(command[2].replace("configs/", f"{house}/"))
            tool(command[1], *words)
        else:
            break
    assert (tmp_path / "run" / "model.pt").is_file()
