"""Parts of a network that stay as they are, and a rate of its own for the backbone."""

import pytest
import torch
from support.ranks import run_on_ranks
from support.tiny import assert_same_run, small_cfg, stopping_at

from backbones import get_model
from backbones.basis import BasisNetwork
from bct.config import load_config
from bct.errors import BctError
from bct.method import Method
from bct.safe.tensors import read_tensors
from bct.train import train
from bct.training.checkpoint import checkpoints
from bct.training.frozen import freeze, train_mode
from bct.training.optimizer import group_named, make_optimizer, set_rate

CPU = torch.device("cpu")


def weights_before_and_after(job, *overrides, steps="num_epoch=1"):
    """A network as it is drawn, and after a training."""
    torch.manual_seed(666)
    drawn = get_model("demo_w32", 16).state_dict()
    train(job(steps, *overrides), Method, CPU)
    return drawn, torch.load(job.output / "model.pt", weights_only=True)


def held(state, *prefixes):
    return {k for k in state if any(f"{k}.".startswith(f"{p}.") for p in prefixes)}


def equal(a, b):
    return {key for key in a if torch.equal(a[key], b[key])}


def test_named_parts_stay_bit_by_bit(job):
    before, after = weights_before_and_after(job, "freeze=['conv1','bn1','layer2']")
    frozen = held(before, "conv1", "bn1", "layer2")
    assert any("running_mean" in key for key in frozen) and frozen <= equal(before, after)
    moved = {k for k in before if k not in frozen and k != "features.weight"}
    assert not moved & equal(before, after)


def test_a_share_is_of_the_first_layers():
    network = get_model("demo_w32", 16)
    total = sum(p.numel() for p in network.parameters())
    freeze(network, 0.2)
    names = [name for name, _ in network.named_parameters()]
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad} - {"features.weight"}
    assert frozen == set(names[: len(frozen)])  # from the input on
    sizes = [p.numel() for p in network.parameters()]
    count = sum(sizes[: len(frozen)])
    assert 0 < count <= 0.2 * total < count + max(sizes)
    train_mode(network)
    assert not network.bn1.training and network.features.training and network.training


def test_all_of_it_leaves_the_head(job):
    before, after = weights_before_and_after(job, "freeze=1")
    assert equal(before, after) == set(before)
    first, last = checkpoints(job.output)[-1], checkpoints(job.output)[0]
    assert first == last and read_tensors(last)["optimizer"]["param_groups"][0]["name"] == "head"
    job.output = job.output.with_name("none")
    with pytest.raises(BctError, match="nothing to train"):
        train(job("freeze=1", "head=none", f"output={job.output}"), Method, CPU)


def test_a_body_is_named_without_its_body():
    network = BasisNetwork(get_model("resnet18", 16 + 8), 16, 8, 4)
    freeze(network, ["conv1", "layer1"])
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == held(dict(network.named_parameters()), "body.body.conv1", "body.body.layer1")
    train_mode(network)
    assert not network.body.body.layer1[0].bn1.training and network.body.body.bn1.training


@pytest.mark.parametrize(
    ("what", "said"), [("['conv9']", "nothing called 'conv9'"), ("1e-9", "less than")]
)
def test_refused(job, what, said):
    with pytest.raises(BctError, match=said):
        train(job(f"freeze={what}"), Method, CPU)
    assert not job.output.exists()
    with pytest.raises(BctError, match="freeze can't be"):
        job("freeze=2")


def test_weight_decay_and_gradients_do_not_reach_it():
    network = get_model("demo_w32", 16)
    freeze(network, ["layer1"])
    optimizer = make_optimizer(
        small_cfg(), network, Method(small_cfg(), None), torch.nn.Linear(16, 3)
    )
    inside = [p for group in optimizer.param_groups for p in group["params"]]
    assert not any(p is q for p in network.layer1.parameters() for q in inside)
    network(torch.zeros(2, 3, 112, 112)).sum().backward()
    assert all(p.grad is None for p in network.layer1.parameters())


def on_a_rank(folder, ranks):
    output = folder / f"run{ranks}"
    given = ["network=demo_w32", "embedding_size=16", "batch_size=4", "num_epoch=1", "amp=off",
             "num_workers=0", f"output={output}", "freeze=['conv1','layer1','layer2']"]  # fmt: skip
    train(load_config(folder / "job.py", given), Method, CPU)


def test_two_ranks(job, tmp_path):
    run_on_ranks(2, on_a_rank, tmp_path, 2)
    after = torch.load(tmp_path / "run2" / "model.pt", weights_only=True)
    torch.manual_seed(666)
    before = get_model("demo_w32", 16).state_dict()
    frozen = held(before, "conv1", "layer1", "layer2")
    assert frozen <= equal(before, after) and not torch.equal(
        before["fc.weight"], after["fc.weight"]
    )


# ---- the backbone's rate


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_rate_for_each_group(optimizer):
    network = BasisNetwork(get_model("demo_w32", 24), 16, 8, 4)
    method = Method(small_cfg(), None)
    method.extra = torch.nn.Linear(2, 2)
    cfg = small_cfg(backbone_lr_factor=0.1, optimizer=optimizer)
    made = make_optimizer(cfg, network, method, torch.nn.Linear(16, 3))
    set_rate(made, 0.5)
    rates = [(group["name"], group["lr"]) for group in made.param_groups]
    assert rates == [("body", 0.05), ("undecayed", 0.05), ("body", 0.5), ("head", 0.5)]
    body = group_named(made, "body")  # what is clipped together
    assert any(p is method.extra.weight for p in body) and len(body) == len({id(p) for p in body})
    trained = [*network.parameters(), *method.parameters()]
    count = sum(p.requires_grad for p in trained)
    assert count == len(body) + len(group_named(made, "undecayed"))


def test_the_first_step_is_as_long_as_the_factor_says(job):
    moved = []
    for factor in (1, 0.25):
        output = job.output.with_name(f"factor{factor}")
        cfg = ["num_epoch=1", "batch_size=20", f"backbone_lr_factor={factor}", "momentum=0"]
        torch.manual_seed(666)
        before = get_model("demo_w32", 16).state_dict()
        train(job(*cfg, f"output={output}"), Method, CPU)
        after = torch.load(output / "model.pt", weights_only=True)
        moved.append((after["fc.weight"] - before["fc.weight"]).norm())
    assert moved[1] / moved[0] == pytest.approx(0.25, rel=1e-3)


def test_stopped_and_resumed(job, tmp_path):
    given = ["backbone_lr_factor=0.1", "freeze=0.1", "sample_rate=0.5"]
    train(job(*given, f"output={tmp_path / 'whole'}"), Method, CPU)
    train(job(*given), stopping_at(Method, 3), CPU)
    train(job(*given, "resume=True"), Method, CPU)
    assert_same_run(tmp_path / "whole", job.output)
    with pytest.raises(BctError, match=r"backbone_lr_factor 0\.1 -> 0\.2"):
        train(job("backbone_lr_factor=0.2", *given[1:], "resume=True"), Method, CPU)
