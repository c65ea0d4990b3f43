"""Learning rates of the published recipes, by other formulas; and of groups: biases, backbone."""

import math

import pytest
import torch
from support.tiny import small_cfg
from torch import nn

from bct.config import load_config
from bct.files import ROOT
from bct.method import Method
from bct.train import train
from bct.training.heads import SoftmaxHead
from bct.training.optimizer import learning_rate, lr_at, make_optimizer, set_rate

STEPS = 7  # per epoch


def rates(*words, epochs=30):
    cfg = load_config(ROOT / "configs" / "base.py", [f"num_epoch={epochs}", "lr=0.1", *words])
    return [learning_rate(cfg, step, STEPS) for step in range(STEPS * epochs)]


def half_wave(base, floor, t, end):
    """From base to floor: the square of a cosine of half the angle."""
    return floor + (base - floor) * math.cos(math.pi * t / end / 2) ** 2


REID = ["lr_policy=timm_cosine", "lr_steps=epoch", "warmup_epoch=5", "warmup_from=0.01"]
REID += ["lr_floor=0.002", "lr=0.008"]


def test_advbcts_rate_by_the_epoch():
    found = rates(*REID, epochs=120)
    for step, rate in enumerate(found):
        epoch, base = step // STEPS, 0.008
        if epoch < 5:
            want = 0.01 * base + epoch * (base - 0.01 * base) / 5
        else:
            want = half_wave(base, 0.002 * base, epoch, 120)
        assert rate == pytest.approx(want, rel=1e-12)
    assert len(set(found)) == 120 and found[0] == pytest.approx(8e-5)


def test_opencompatibles_rate_by_the_batch():
    words = ["warmup_epoch=1", "warmup_from=0.001", "lr_floor=0.01"]
    for step, rate in enumerate(rates("lr_policy=timm_cosine", *words)):
        want = half_wave(0.1, 1e-3, step, STEPS * 30)
        if step < STEPS:
            want = 1e-4 + step * (0.1 - 1e-4) / STEPS
        assert rate == pytest.approx(want, rel=1e-12)
    tenths = rates("decay_epoch=[10,20]", *words)
    for step, rate in enumerate(tenths):
        want = 0.1 * 0.1 ** (step // (10 * STEPS))
        if step < STEPS:
            want = 1e-4 + step * (0.1 - 1e-4) / STEPS
        assert rate == pytest.approx(want, rel=1e-12)


def test_advbcts_landmark_rate_is_in_tenths():
    found = rates("decay_epoch=[5,10,20]", "warmup_epoch=3")  # no start is said: none is warmed up
    assert [found[epoch * STEPS] for epoch in (0, 4, 5, 10, 20, 29)] == pytest.approx(
        [0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4]
    )


def test_published_the_rate_of_re_identification_is_constant():
    assert set(rates("lr_policy=constant", "lr=0.008")) == {0.008}
    warmed = rates("lr_policy=constant", "warmup_epoch=2", "warmup_from=0.5")
    assert warmed[0] == pytest.approx(0.05) and set(warmed[2 * STEPS :]) == {0.1}


def test_our_cosine_begins_after_the_warm_up():
    found = rates("lr_policy=cosine", "warmup_epoch=5", "lr_floor=0.1")
    assert found[5 * STEPS] == 0.1 and found[5 * STEPS - 1] < 0.1
    middle = found[(5 + 30) // 2 * STEPS + STEPS // 2]
    assert middle == pytest.approx(0.055, rel=0.05) and 0.01 < found[-1] < 0.0101
    end = rates("lr_floor=0.1")[-1]
    assert end == pytest.approx(0.01, rel=0.01)


def test_what_is_left_as_it_is_has_the_bits_it_had():
    """The formulas from before there were shares to start from and to end at."""
    for step in range(200):
        warm = 0.1 * step / 37
        power = 0.1 * max(1 - (step - 37) / (200 - 37), 0.0) ** 2.0
        wave = 0.1 / 2 * (1 + math.cos(math.pi * ((step - 37) / (200 - 37))))
        for policy, later in (("poly", power), ("cosine", wave)):
            assert lr_at(step, 200, 37, 0.1, 2.0, policy) == (warm if step < 37 else later)


# ---- groups


class Free(Method):
    def __init__(self, cfg):
        super().__init__(cfg, None)
        self.map, self.bound = nn.Linear(3, 2), nn.Linear(1, 4)

    def undecayed(self):
        return list(self.bound.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_have_a_rate_and_a_decay_of_their_own(optimizer):
    backbone, head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), SoftmaxHead(4, 5)
    cfg = small_cfg(optimizer=optimizer, bias_lr_factor=2.0, bias_weight_decay=1e-4)
    cfg.backbone_lr_factor = 0.5
    method = Free(cfg)
    made = make_optimizer(cfg, backbone, method, head)
    set_rate(made, 0.01)
    found = {}
    parts = {"backbone": backbone, "method": method, "head": head}
    names = {p: f"{w}.{n}" for w, part in parts.items() for n, p in part.named_parameters()}
    for group in made.param_groups:
        for p in group["params"]:
            assert names[p] not in found
            found[names[p]] = group["name"], group["lr"], group["weight_decay"]
    assert found == {
        "backbone.0.weight": ("body", 0.005, 5e-4), "backbone.0.bias": ("body", 0.01, 1e-4),
        "backbone.1.weight": ("body", 0.005, 5e-4), "backbone.1.bias": ("body", 0.01, 1e-4),
        "method.map.weight": ("body", 0.01, 5e-4), "method.map.bias": ("body", 0.02, 1e-4),
        "method.bound.weight": ("undecayed", 0.01, 0), "method.bound.bias": ("undecayed", 0.02, 0),
        "head.weight": ("head", 0.01, 5e-4), "head.bias": ("head", 0.02, 1e-4),
    }  # fmt: skip
    only_rate = make_optimizer(small_cfg(bias_lr_factor=2.0), backbone, method, head)
    assert {g["weight_decay"] for g in only_rate.param_groups if g["name"] != "undecayed"} == {5e-4}
    assert len(make_optimizer(small_cfg(), backbone, method, head).param_groups) == 3


def test_a_longer_run_begins_anew_at_its_floor(job, caplog):
    """Where it is made longer, its log says what its schedule does."""
    words = ["num_epoch=3", "lr_policy=timm_cosine", "lr_floor=0.1", "lr=0.01", "head=softmax"]
    assert train(job(*words), Method, torch.device("cpu")) == 0
    caplog.set_level("INFO")
    more = [*words, "num_epoch=4", "resume=True"]
    assert train(job(*more), Method, torch.device("cpu")) == 0
    assert "0.001 by the shorter schedule, it is 0.0023" in caplog.text


@pytest.mark.parametrize(("warmup", "said"), [(1, "0.01"), (2, "0.005")])
def test_a_run_that_was_all_warm_up_can_be_made_longer(job, caplog, warmup, said):
    """Its shorter schedule has no slope to be on: it ends with the warm-up, or within it."""
    words = ["num_epoch=1", f"warmup_epoch={warmup}", "lr=0.01", "head=softmax"]
    assert train(job(*words), Method, torch.device("cpu")) == 0
    caplog.set_level("INFO")
    more = [*words, "num_epoch=3", "resume=True"]
    assert train(job(*more), Method, torch.device("cpu")) == 0
    assert f"learning rate: it goes on at {said}" in caplog.text
