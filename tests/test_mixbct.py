"""MixBCT: golden values, which rows are replaced, which gradients flow."""

import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from support.heads import dense_loss, head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks

from bct import distributed
from bct.data.loader import Batch
from bct.method import load_method
from bct.streams import generator

MixBCT = load_method("MixBCT")


def make(images=40, dim=8, credible=None, mix_ratio=0.3):
    rng = np.random.default_rng(0)
    mask = np.ones(images, bool) if credible is None else credible
    old = OldArrays(
        old_embedding=rng.standard_normal((images, dim)).astype(np.float32),
        credible_old_feature=mask,
    )
    return MixBCT(EasyDict(mix_ratio=mix_ratio, T=0.9), old), old


def stream(*key):
    return generator("cpu", *key)


def test_golden(shared):
    data = np.load(shared / "golden/methods/inputs_and_grads.npz")
    want = json.loads((shared / "golden/methods/expected.json").read_text())["mixbct_loss"]
    old = OldArrays(
        old_embedding=data["f_old"], credible_old_feature=np.ones(len(data["f_old"]), bool)
    )
    method = MixBCT(EasyDict(mix_ratio=0.3, T=0.9), old)
    head = head_with(torch.from_numpy(data["W"]), margin=(1, 0.5, 0), scale=64)
    f, y = torch.from_numpy(data["f_new"]).requires_grad_(), torch.from_numpy(data["labels"])
    rows = torch.from_numpy(data["mixbct_replaced_rows"])
    batch = Batch(
        None, y, torch.arange(len(y)), {"rows": rows, "features": old.rows("old_embedding", rows)}
    )
    losses = method(f, batch, head, stream(0))
    sum(losses.values()).backward()
    assert losses["cls"].item() == pytest.approx(want, rel=1e-5)
    for grad, key in ((f.grad, "embeddings"), (head.weight.grad, "weight")):
        golden = data[f"mixbct_grad_{key}"]
        np.testing.assert_allclose(grad.numpy(), golden, atol=1e-5 * np.abs(golden).max())


def test_loss_and_gradients_match_float64_and_old_rows_get_none():
    method, old = make()
    rng = torch.Generator().manual_seed(1)
    f = torch.randn(24, 8, generator=rng, dtype=torch.float64)
    w = torch.randn(11, 8, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 11, (24,), generator=rng)
    index = torch.randperm(40, generator=rng)[:24]
    fetched = method.fetch(index, y, stream(5))
    rows = fetched["rows"]
    assert len(rows) == len(rows.unique()) == int(0.3 * 24)

    f64, w64 = f.clone().requires_grad_(), w.clone().requires_grad_()
    z = f64.clone()
    z[rows] = F.normalize(torch.from_numpy(old.arrays["old_embedding"])[index[rows]].double())
    want = dense_loss(z, w64, y, (1, 0.3, 0), 20.0)
    want.backward()
    head = head_with(w.float(), margin=(1, 0.3, 0), scale=20.0)
    f32 = f.float().requires_grad_()
    loss = method(f32, Batch(None, y, index, fetched), head, stream(6))["cls"]
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    torch.testing.assert_close(f32.grad.double(), f64.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(head.weight.grad.double(), w64.grad, rtol=1e-3, atol=1e-6)
    assert (f32.grad[rows] == 0).all()
    kept = torch.ones(24, dtype=torch.bool)
    kept[rows] = False
    assert (f32.grad[kept].abs().sum(1) > 0).all()
    assert list(method.parameters()) == []  # the old side is constant


def test_replaced_rows_are_credible_seeded_and_only_they_are_read():
    credible = np.arange(40) % 2 == 0
    method, old = make(credible=credible)
    index, y = torch.arange(40).flip(0), torch.zeros(40, dtype=torch.long)
    draws = [
        method.fetch(index, y, stream(*key))["rows"].tolist() for key in ((1, 0), (1, 1), (1, 0))
    ]
    assert draws[0] == draws[2] and sorted(draws[0]) != sorted(draws[1])
    for rows, (kind, read) in zip(draws, old.read, strict=True):
        assert kind == "old_embedding" and read == index[rows].tolist()
        assert len(rows) == 12 and credible[index[rows]].all()


def test_rows_are_drawn_evenly():
    method, _ = make()
    index, y = torch.arange(40), torch.zeros(40, dtype=torch.long)
    counts = np.zeros(40)
    for step in range(2000):
        counts[method.fetch(index, y, stream(step))["rows"].numpy()] += 1
    assert abs(counts / 2000 - 0.3).max() < 0.05


@pytest.mark.parametrize("available", [0, 3])
def test_fewer_credible_rows_than_wanted(caplog, available):
    credible = np.zeros(40, bool)
    credible[:available] = True
    method, _ = make(credible=credible)
    index, y = torch.arange(40), torch.zeros(40, dtype=torch.long)
    head = head_with(torch.eye(8))
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            fetched = method.fetch(index, y, stream(step))
            assert sorted(fetched["rows"].tolist()) == list(range(available))
            loss = method(torch.randn(40, 8), Batch(None, y, index, fetched), head, stream(9))[
                "cls"
            ]
            assert loss.isfinite()
    assert len(caplog.records) == 1  # said once


def gradient(f, w, y, old_rows, rows):
    """Embedding gradient after DDP's mean, with the same replacements on any number of ranks."""
    size, rank = distributed.world_size(), distributed.rank()
    n = len(f) // size
    mine = slice(rank * n, (rank + 1) * n)
    local = rows[(rows >= mine.start) & (rows < mine.stop)] - mine.start
    f_local = f[mine].clone().requires_grad_()
    method, _ = make()
    old = {"rows": local, "features": old_rows[mine][local]}
    head = head_with(w, scale=20.0)
    method(f_local, Batch(None, y[mine], None, old), head, None)["cls"].backward()
    return f_local.grad / size, head.weight.grad


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_give_the_gradient_of_the_whole_batch(world_size):
    rng = torch.Generator().manual_seed(2)
    f, old = torch.randn(16, 8, generator=rng), torch.randn(16, 8, generator=rng)
    w, y = torch.randn(9, 8, generator=rng), torch.randint(0, 9, (16,), generator=rng)
    rows = torch.tensor([0, 3, 4, 9, 15])
    (one,) = run_on_ranks(1, gradient, f, w, y, old, rows)
    many = run_on_ranks(world_size, gradient, f, w, y, old, rows)
    torch.testing.assert_close(torch.cat([g for g, _ in many]), one[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.cat([g for _, g in many]), one[1], rtol=1e-4, atol=1e-7)
