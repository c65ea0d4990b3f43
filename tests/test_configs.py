"""Every shipped config makes two training steps, with the old models and artefacts it names.

What is replaced: the data by eighteen drawn pictures of six classes, in the form that the config's
own data has; batch, epochs and workers; and a network too large to be trained for each of over a
hundred configs by a small one whose embeddings are as wide, on images of 64 pixels where the config
has 224 (shipped.stand_in). The large ones are built at the width of every config, without memory
for their weights, and each is trained for two steps once, as the first config that names it has it,
but without a method. `make test` leaves out
what repeats a kind of config; the slow tests train that, too, but for insightface's: what these
resolve to is in tests/test_conventions.py.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.insightface_configs import TABLE
from support.shipped_configs import (
    CHAINS,
    CONFIGS,
    LIGHT,
    ROOT,
    Shipped,
    all_settings,
    method_of,
    name_of,
    repeated,
    settings,
)

from backbones import get_model
from bct.files import read_json
from bct.models.weights import load_backbone

# a config that differs from an earlier one of its method in numbers, shard or scenario alone trains
# among the slow tests
OF_A_KIND = repeated(CONFIGS)
OF_A_TABLE = {path for path in OF_A_KIND if path.stem in TABLE}
HUGE = ("vit_l", "vit_h")  # a quarter of a billion weights and more, in the form of vit_b
SLOW = ("vit_", "vgg", "alexnet", "r50", "r100", "r200", "resnet50")  # more than a few seconds each


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    house = Shipped(tmp_path_factory.mktemp("shipped"))
    yield house
    shutil.rmtree(house.folder)  # a GB of networks


def assert_trained(trained):
    assert len(trained.steps) == 2
    for step in trained.steps:
        terms = {key: value for key, value in step.items() if key.startswith("loss")}
        assert np.isfinite(list(terms.values())).all(), terms
    assert trained.still == []
    weights = Path(trained.cfg.output) / "model.pt"
    with torch.inference_mode():
        embeddings = load_backbone(weights)(trained.inputs)
    assert embeddings.shape == (2, trained.width) and embeddings.isfinite().all()
    assert read_json(weights.with_suffix(".json"))["embedding_size"] == trained.width


def test_no_file_is_left_out():
    files = {*ROOT.glob("configs/**/*.py"), *ROOT.glob("methods/*/*/**/*.py")}
    assert files - {ROOT / "configs" / "base.py"} == {*CONFIGS, *CHAINS}


def slow_if(repeats, parameter, name=None):
    return pytest.param(parameter, marks=[pytest.mark.slow] if repeats else [], id=name)


def test_what_every_config_needs_is_known():
    for path in CONFIGS:
        assert isinstance(method_of(path).needs(settings(path)), tuple), path


TRAINED = [path for path in CONFIGS if path not in OF_A_TABLE]


@pytest.mark.parametrize("path", [slow_if(p in OF_A_KIND, p, name_of(p)) for p in TRAINED])
def test_trains_two_steps(shipped, path):
    trained = shipped.train(path)
    assert_trained(trained)
    if path.parent != ROOT / "configs":  # those there may be old models of others
        shutil.rmtree(trained.cfg.output)


@pytest.mark.parametrize("path", CHAINS, ids=name_of)
def test_every_version_of_a_chain_trains_two_steps(shipped, path):
    for trained in shipped.train_chain(path):
        assert_trained(trained)


LARGE = [cfg for cfg in all_settings() if not cfg.network.startswith(LIGHT)]
FIRST = {cfg.network: cfg for cfg in reversed(LARGE)}
WIDTHS = sorted({(cfg.network, cfg.embedding_size) for cfg in LARGE})


@pytest.mark.parametrize(("network", "width"), WIDTHS)
def test_large_network_can_be_built(network, width):
    with torch.device("meta"):
        assert get_model(network, width).embedding_size == width


@pytest.mark.parametrize(
    "network",
    [slow_if(name.startswith(SLOW), name) for name in FIRST if not name.startswith(HUGE)],
)
def test_large_network_trains_two_steps(shipped, network):
    trained = shipped.train_alone(FIRST[network])
    assert_trained(trained)
    shutil.rmtree(trained.cfg.output)
