"""Every method from records to a model: all terms, both parities, ranks, resuming, scenarios."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.old_models import CPU, build, config, tool
from support.ranks import run_on_ranks
from support.tiny import assert_same_run, stopping_at

from bct import distributed
from bct.errors import BctError
from bct.files import ROOT, sha256_file
from bct.method import Method, load_method, method_names
from bct.train import train

TERMS = {
    "MixBCT": {"cls"},
    "BCT": {"cls", "influence"},
    "UniBCT": {"cls", "influence"},
    "NCCL": {"cls", "feature", "class"},
    "AdvBCT": {"cls", "p2s", "adv"},
    "L2": {"cls", "l2"},
    "HotRefresh": {"cls", "pairs"},
    "LCE": {"cls", "boundary", "align"},
    "BCTRACT": {"cls", "influence"},
    "FocalDistillation": {"cls", "distance"},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def alone(house, tmp_path_factory):
    """The weights of the same network after the same steps without a method."""
    output = tmp_path_factory.mktemp("alone")
    train(config(house, "L2", output), Method, CPU)
    return torch.load(output / "model.pt", weights_only=True)


def terms_of(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return steps, {key for step in steps for key in step if key.startswith("loss/")}


def assert_finite(output):
    steps, _ = terms_of(output)
    assert len(steps) == 12 and all(np.isfinite(step["loss"]) for step in steps)


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("name", TERMS)
def test_trains_and_leaves_a_plain_network(house, alone, tmp_path, name, parity):
    old = {p: sha256_file(p) for p in (house / "features").rglob("*.npy")}
    cfg = config(house, name, tmp_path, f"parity={parity}")
    train(cfg, load_method(name), CPU)
    steps, terms = terms_of(tmp_path)
    assert len(steps) == 12 and all(np.isfinite(step["loss"]) for step in steps)
    if len(TERMS[name]) > 1:
        assert terms == {f"loss/{term}" for term in TERMS[name]}
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert weights.keys() == alone.keys()  # no discriminator, no prototypes
    assert not torch.equal(weights["fc.weight"], alone["fc.weight"])
    assert old == {p: sha256_file(p) for p in (house / "features").rglob("*.npy")}


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TERMS)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(house, tmp_path, name, world_size):
    """Stopped in the second of three epochs, between UniBCT's first and last prototypes."""
    run_on_ranks(world_size, whole_and_stopped, house, name, tmp_path, "corrected")
    assert_finite(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UniBCT", "NCCL", "AdvBCT"])
def test_published_runs_go_on_too(house, tmp_path, name):
    """Here ranks keep batch statistics, AdvBCT's discriminator's too, and queues of their own."""
    run_on_ranks(2, whole_and_stopped, house, name, tmp_path, "published")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def whole_and_stopped(house, name, folder, parity, *given):
    original = load_method(name)
    batch = 8 // distributed.world_size()

    def run(output, method, *more):
        overrides = f"batch_size={batch}", f"parity={parity}", *given, *more
        return train(config(house, name, folder / output, *overrides), method, CPU)

    assert run("whole", original) == 0
    assert run("stopped", stopping_at(original, 6)) == 128 + signal.SIGTERM
    assert not json.loads((folder / "stopped" / "run.json").read_text())["finished"]
    assert run("stopped", original, "resume=True") == 0


def train_here(house, name, output, parity):
    train(config(house, name, output, "batch_size=4", f"parity={parity}"), load_method(name), CPU)


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("name", TERMS)
def test_trains_on_two_ranks(house, tmp_path, name, parity):
    run_on_ranks(2, train_here, house, name, tmp_path, parity)
    assert_finite(tmp_path)


@pytest.mark.parametrize("scenario", ["OPclass", "OPdata", "EXclass", "EXdata"])
@pytest.mark.parametrize("name", TERMS)
def test_every_scenario(house, tmp_path, name, scenario):
    cfg = config(house, name, tmp_path, "num_epoch=1", scenario=scenario)
    train(cfg, load_method(name), CPU)
    classes, images = {
        "OPclass": (7, 32), "OPdata": (10, 46 - 13), "EXclass": (10, 46), "EXdata": (10, 46),
    }[scenario]  # fmt: skip
    assert (cfg.num_classes, cfg.num_image) == (classes, images)


READINGS = [
    ("LCE", "reading=lce", {"boundary", "align"}),
    ("AdvBCT", "reading=advbct", {"p2s", "adv"}),
    ("AdvBCT", "boundary=fixed adversarial=False", {"p2s"}),
    ("AdvBCT", "reading=advbct boundary=old_distance topk=3", {"p2s", "adv", "pairs"}),
    ("UniBCT", "reading=advbct", {"influence"}),
]


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("head", ["softmax", "margin"])
@pytest.mark.parametrize(("name", "settings", "terms"), READINGS)
def test_other_readings(house, tmp_path, name, settings, terms, head, parity):
    """Where the old model has seen no class, and where it has seen three."""
    for scenario, unseen in (("OPclass", "synthesise"), ("EXclass", "ignore")):
        given = f"parity={parity}", f"head={head}", f"unseen={unseen}", *settings.split()
        output = tmp_path / scenario
        cfg = config(house, name, output, "num_epoch=1", *given, scenario=scenario)
        assert train(cfg, load_method(name), CPU) == 0
        steps, found = terms_of(output)
        assert found == {f"loss/{term}" for term in terms | {"cls"}}
        assert all(np.isfinite(step["loss"]) for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "terms"), READINGS)
def test_other_readings_go_on_after_a_stop(house, tmp_path, name, settings, terms):
    run_on_ranks(2, whole_and_stopped, house, name, tmp_path, "corrected", *settings.split())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


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

    class Watching(load_method("BCT")):
        def begin_epoch(self, epoch, embed):
            assert self.row.tolist() == [*range(seen), *[-1] * (10 - seen)]
            if influence == "old_classifier":
                saved = torch.load(house / scenario[2:] / "model.pt", weights_only=True)
                assert torch.equal(self.weight, saved["cls_fc.weight"])

    train(cfg, Watching, CPU)
    _, terms = terms_of(tmp_path)
    assert "loss/influence" in terms


def test_nccl_with_the_credibility_filter(house, tmp_path):
    train(config(house, "NCCL", tmp_path, "credible=True", "T=1.0"), load_method("NCCL"), CPU)
    assert terms_of(tmp_path)[0][-1]["loss/feature"] > 0


@pytest.mark.parametrize("name", TERMS)
def test_a_missing_artefact_names_the_command_that_makes_it(house, tmp_path, name):
    """With nothing but the old model, doing what the errors say leads to a run that trains."""
    saved = f"feature_save={tmp_path / 'nothing yet'}"
    given = saved, "num_epoch=1"
    if name in (
        "BCT",
        "LCE",
        "BCTRACT",
    ):  # read no embeddings; the tool they name says that they are missing
        tool("extract_features", house / "old_class30.py", "--SD", "old_class70", saved)
    more = ("credible=True",) if name == "NCCL" else ()
    for _ in range(5):
        try:
            train(config(house, name, tmp_path / "run", *given, *more), load_method(name), CPU)
        except BctError as error:
            command = re.search(r"make it with: python tools/(\w+)\.py (.*)", str(error))
            assert command, str(error)
            words = shlex.split(command[2].replace("configs/", f"{house}/"))
            tool(command[1], *words)
        else:
            break
    assert (tmp_path / "run" / "model.pt").is_file()


# ---- load_method


def test_an_unknown_method_is_refused_with_the_names_of_all():
    with pytest.raises(BctError, match="there is no method MixBTC") as error:
        load_method("MixBTC")
    assert error.value.do == f"choose from {', '.join(method_names())}"
    assert {*TERMS, "BT2", "FCT", "OpenBCT"} == set(method_names())
    for name in method_names():
        assert issubclass(load_method(name), Method) and load_method(name).__name__ == name


@pytest.mark.parametrize("other", [True, False])
def test_outside_a_clone_two_lines_say_where_methods_are(tmp_path, other):
    """Installed alone, or with another package called `methods` before ours."""
    shutil.copytree(ROOT / "bct", tmp_path / "installed" / "bct")
    shutil.copytree(ROOT / "backbones", tmp_path / "installed" / "backbones")
    if other:
        (tmp_path / "installed" / "methods.py").write_text("raise SystemExit('imported')\n")
    code = "from bct.method import load_method\nfrom bct.command import run_cli\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}run_cli(lambda: load_method('BCT'))"],
        cwd=tmp_path / "installed", env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and "can't load the method BCT" in lines[0]
    assert not other or "another package `methods`" in lines[0]
    assert "clone of the repository" in lines[1]
