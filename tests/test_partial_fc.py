"""PartialFC against golden values, float64 autograd, and itself on several ranks."""

import itertools
import json
import math
import weakref

import numpy as np
import pytest
import torch
from support.heads import dense_loss, head_with, problem
from support.ranks import run_on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from bct import distributed
from bct.errors import BctError
from bct.streams import generator
from bct.training.heads import PartialFC, SoftmaxHead
from bct.training.margin_softmax import margin_logit

MARGINS = [(1, 0.5, 0), (1, 0, 0.35), (1.35, 0, 0), (1, 0.3, 0.2), (0.9, 0.4, 0.15)]


@pytest.mark.parametrize(
    "name,margin", [("arcface_s64_m05", (1, 0.5, 0)), ("cosface_s64_m04", (1, 0, 0.4))]
)
def test_golden(shared, name, margin):
    data = np.load(shared / "golden/methods/inputs_and_grads.npz")
    expected = json.loads((shared / "golden/methods/expected.json").read_text())
    head = head_with(torch.from_numpy(data["W"]), margin=margin, scale=64)
    f = torch.from_numpy(data["f_new"]).requires_grad_()
    loss = head(f, torch.from_numpy(data["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(expected[f"pfc_{name}_loss"], rel=1e-5)
    for grad, key in ((f.grad, "embeddings"), (head.weight.grad, "weight")):
        want = data[f"pfc_{name}_grad_{key}"]
        np.testing.assert_allclose(grad.numpy(), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("filter_above", [0.0, 0.2])
def test_loss_and_gradients_match_float64_autograd(margin, filter_above):
    f, w, y = problem()
    f64, w64 = f.clone().requires_grad_(), w.clone().requires_grad_()
    dense_loss(f64, w64, y, margin, 30.0, filter_above).backward()
    head = head_with(w.float(), margin=margin, scale=30.0, filter_above=filter_above)
    f32 = f.float().requires_grad_()
    loss = head(f32, y)
    (3.0 * loss).backward()  # an upstream factor, as loss scaling gives
    assert loss.item() == pytest.approx(
        dense_loss(f, w, y, margin, 30.0, filter_above).item(), rel=1e-5, abs=1e-6
    )
    torch.testing.assert_close(f32.grad.double(), 3 * f64.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(head.weight.grad.double(), 3 * w64.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("margin", [(1, 0.5, 0), (1.35, 0, 0), (1, 0.3, 0.2), (1.5, 0.2, 0.1)])
def test_margin_logit_falls_with_the_angle_and_its_slope_is_the_derivative(margin):
    theta = torch.linspace(0.01, math.pi - 0.01, 2000, dtype=torch.float64)
    psi, slope = margin_logit(torch.cos(theta), *margin)
    assert (psi.diff() < 0).all()
    cos = torch.cos(theta).requires_grad_()
    numeric = torch.autograd.grad(margin_logit(cos, *margin)[0].sum(), cos)[0]
    torch.testing.assert_close(slope, numeric)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_at_cosine_one(sign):
    w = torch.eye(8)
    head = head_with(w, margin=(1, 0.5, 0))
    f = (sign * w[:4]).clone().requires_grad_()
    loss = head(f, torch.arange(4))
    loss.backward()
    assert loss.isfinite() and f.grad.isfinite().all() and head.weight.grad.isfinite().all()


def test_loss_is_not_capped():
    """A target at the bottom of the softmax: -log p is about 2 * 64 + margin, not 69.08."""
    w = torch.eye(4)
    head = head_with(w, margin=(1, 0, 0.5))
    loss = head(-w[:1] + w[1:2] * 1e-3, torch.tensor([0]))
    assert loss.item() == pytest.approx(64 * 1.5 + math.log(3), rel=1e-3)


def on_ranks(f, w, y, rate):
    """Loss, sampled classes, embedding gradient (after DDP's mean) and centre gradient."""
    size, rank = distributed.world_size(), distributed.rank()
    head = head_with(w, sample_rate=rate, scale=30.0)
    rows = len(f) // size
    local = f[rank * rows : (rank + 1) * rows].clone().requires_grad_()
    rng = generator("cpu", "negatives", rank)
    loss = head(local, y[rank * rows : (rank + 1) * rows], rng)
    loss.backward()
    return loss.item(), head.sampled, local.grad / size, head.weight.grad


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_equals_the_dense_reference_on_any_number_of_ranks(world_size):
    compare_with_dense(world_size, *problem(classes=53))  # 53 does not divide by 2 or 4


@pytest.mark.parametrize("case", ["labels on one", "one sample each", "one class each"])
def test_extreme_cuts(case):
    if case == "labels on one":
        f, w, y = problem(classes=13)
        y = y % 4  # the first of four ranks has 4 of the 13 classes
    elif case == "one sample each":
        f, w, y = problem(batch=4)
    else:
        f, w, y = problem(classes=4)
    compare_with_dense(4, f, w, y)


def compare_with_dense(world_size, f, w, y):
    for rate in (1.0, 0.3, 0.1):
        results = run_on_ranks(world_size, on_ranks, f.float(), w.float(), y, rate)
        used = torch.arange(len(w)) if rate == 1 else torch.cat([r[1] for r in results])
        assert set(y.tolist()) <= set(used.tolist())
        assert len(used) == len(used.unique())
        f64, w64 = f.clone().requires_grad_(), w.clone().requires_grad_()
        position = torch.searchsorted(used, y)
        want = dense_loss(f64, w64[used], position, (1, 0.5, 0), 30.0)
        want.backward()
        for loss, *_ in results:
            assert loss == pytest.approx(want.item(), rel=1e-5)
        grad_f = torch.cat([r[2] for r in results]).double()
        grad_w = torch.cat([r[3] for r in results]).double()
        torch.testing.assert_close(grad_f, f64.grad, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(grad_w, w64.grad, rtol=1e-3, atol=1e-7)


def in_blocks(f, w, y, block):
    """Per margin, filter and sampling rate: loss, embedding and centre gradient of this rank."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    out = []
    for margin, filter_above, rate in itertools.product(MARGINS, (0.0, 0.2), (1.0, 0.3)):
        options = {"margin": margin, "filter_above": filter_above, "sample_rate": rate}
        head = head_with(w, scale=30.0, block=block, **options)
        local = f[mine].clone().requires_grad_()
        loss = head(local, y[mine], generator("cpu", "negatives", rank))
        (3.0 * loss).backward()
        out.append((loss.detach(), local.grad, head.weight.grad))
    return out


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_blocks_of_classes_give_what_one_block_gives(world_size):
    """Blocks of 1 class, and of some numbers that do not divide the classes."""
    f, w, y = problem(classes=101)
    results = run_on_ranks(world_size, blocked_and_whole, f.float(), w.float(), y)
    for whole, *blocked in results:
        for got in blocked:
            for one, other in zip(whole, got, strict=True):
                for a, b in zip(one, other, strict=True):
                    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


def blocked_and_whole(f, w, y):
    return [in_blocks(f, w, y, block) for block in (2**28, 1, 24 * 5, 24 * 8)]


class Alive(TorchDispatchMode):
    """Watches the results of all operations; `most`: the most bytes that were alive at once."""

    def __init__(self):
        super().__init__()
        self.bytes = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.bytes:
                    self.bytes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.bytes.pop, storage._cdata)
        self.most = max(self.most, sum(self.bytes.values()))
        return out


@pytest.mark.parametrize("filter_above", [0.0, 0.2])
def test_never_two_blocks_at_once(filter_above):
    f, w, y = problem(classes=4001, dim=4, batch=64)
    f, most = f.float().requires_grad_(), {}
    for block in (64 * 4001, 64 * 1500):
        head = head_with(w.float(), filter_above=filter_above, block=block)
        with Alive() as alive:
            head(f, y).backward()
        most[block] = alive.most
    whole, part = most
    assert most[whole] > 4 * whole  # all logits were there at once, or the measure is wrong
    assert 4 * part < most[part] < 1.9 * 4 * part


def initial_centres(classes, dim):
    return PartialFC(dim, classes, seed=7).weight.detach()


def test_centres_start_different_on_each_rank_and_do_not_depend_on_their_number():
    one = initial_centres(9001, 4)
    two = run_on_ranks(2, initial_centres, 9001, 4)
    assert not torch.equal(two[0][:4500], two[1])
    torch.testing.assert_close(torch.cat(two), one, rtol=0, atol=0)
    assert one.std().item() == pytest.approx(0.01, rel=0.05)


def test_negatives_change_from_step_to_step_and_repeat_with_the_seed():
    f, w, y = problem()
    head = head_with(w.float(), sample_rate=0.5)
    draws = []
    for step in (0, 1, 0):
        head(f.float(), y, generator("cpu", "step", step))
        draws.append(head.sampled.tolist())
    assert draws[0] != draws[1] and draws[0] == draws[2]


def test_bad_options():
    with pytest.raises(BctError, match="sample_rate"):
        PartialFC(4, 10, sample_rate=-0.1)
    with pytest.raises(BctError, match="block"):
        PartialFC(4, 10, block=0)


@pytest.mark.parametrize("unit", [False, True])
def test_softmax_head_uses_embeddings_as_they_are_or_of_unit_length_and_bias(unit):
    head = SoftmaxHead(3, 5, unit=unit)
    f = torch.randn(7, 3)
    y = torch.randint(0, 5, (7,))
    seen = f.double() / f.double().square().sum(1, keepdim=True).sqrt() if unit else f.double()
    logits = seen @ head.weight.double().T + head.bias.double()
    want = (logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]).mean()
    assert head(f, y).item() == pytest.approx(want.item(), rel=1e-5)
