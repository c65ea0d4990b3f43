"""L2 and weakened L2: golden values, the formula image by image, which gradients flow."""

import json
import math

import numpy as np
import pytest
import torch
from easydict import EasyDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gradients import numeric_gradient
from support.heads import dense_loss, head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks

from bct import distributed
from bct.data.loader import Batch
from bct.keys import plain
from bct.method import load_method

L2 = load_method("L2")


def make(old_embedding, **changes):
    old = OldArrays(old_embedding=old_embedding)
    return L2(EasyDict({**plain(L2.defaults), "parity": "corrected", **changes}), old), old


def terms(method, f, y, index, head):
    return method(f, Batch(None, y, index, method.fetch(index, y, None)), head, None)


def by_hand(f, old, threshold):
    """mean_i max(|n(o_i) - n(f_i)| - threshold, 0), one image after another."""
    total = 0.0
    for f_i, o_i in zip(f, old, strict=True):
        gap = o_i / math.sqrt(o_i @ o_i) - f_i / math.sqrt(f_i @ f_i)
        total += max(math.sqrt(gap @ gap) - threshold, 0.0)
    return total / len(f)


@pytest.mark.parametrize("name,threshold", [("l2", 0.0), ("weakened_l2", 0.2)])
@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_golden(shared, name, threshold, parity):
    data = np.load(shared / "golden/methods/inputs_and_grads.npz")
    want = json.loads((shared / "golden/methods/expected.json").read_text())[f"{name}_term"]
    method, _ = make(data["f_old"], threshold=threshold, parity=parity)
    f, y = torch.from_numpy(data["f_new"]).requires_grad_(), torch.from_numpy(data["labels"])
    loss = terms(method, f, y, torch.arange(len(y)), head_with(torch.from_numpy(data["W"])))["l2"]
    loss.backward()
    assert loss.item() == pytest.approx(want, rel=1e-5)
    golden = data[f"{name}_grad"]
    np.testing.assert_allclose(f.grad.numpy(), golden, atol=1e-5 * np.abs(golden).max())


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 5),
    dim=st.integers(2, 6),
    threshold=st.sampled_from([0.0, 0.2, 1.2]),
    weight=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_distance_and_gradient_match_float64_by_hand(seed, images, dim, threshold, weight):
    rng = np.random.default_rng(seed)
    away_from_0 = rng.uniform(0.2, 2, (2, 9, dim)) * rng.choice([-1, 1], (2, 9, dim))
    old, f = away_from_0.astype(np.float32)
    index, f = rng.permutation(9)[:images], f[:images]
    method, _ = make(old, threshold=threshold, loss_weight=[1.0, weight])
    f32 = torch.from_numpy(f).requires_grad_()
    y, where = torch.zeros(images, dtype=torch.long), torch.from_numpy(index)
    loss = terms(method, f32, y, where, head_with(torch.eye(dim)))["l2"]
    loss.backward()

    f64, old64 = f.astype(np.float64), old[index].astype(np.float64)
    assert loss.item() == pytest.approx(weight * by_hand(f64, old64, threshold), abs=1e-5)
    want = weight * numeric_gradient(lambda x: by_hand(x, old64, threshold), f64)
    distances = np.array([by_hand(f64[[i]], old64[[i]], 0.0) for i in range(images)])
    smooth = abs(distances - threshold) > 1e-3  # at the threshold itself there is no derivative
    np.testing.assert_allclose(f32.grad.numpy()[smooth], want[smooth], rtol=1e-3, atol=1e-4)


def test_the_loss_is_both_terms_with_their_weights():
    rng = np.random.default_rng(0)
    old, f = rng.standard_normal((2, 7, 5)).astype(np.float32)
    w = rng.standard_normal((4, 5)).astype(np.float32)
    y = torch.arange(7) % 4
    method, _ = make(old, loss_weight=[0.5, 3.0], threshold=0.1)
    head = head_with(torch.from_numpy(w), margin=(1, 0.3, 0), scale=20.0)
    losses = terms(method, torch.from_numpy(f), y, torch.arange(7), head)
    cls = dense_loss(torch.from_numpy(f).double(), torch.from_numpy(w).double(), y, (1, 0.3, 0), 20)
    assert losses.keys() == {"cls", "l2"}
    assert losses["cls"].item() == pytest.approx(0.5 * cls.item(), rel=1e-5)
    assert losses["l2"].item() == pytest.approx(3 * by_hand(f, old, 0.1), rel=1e-5)


def test_within_the_ball_an_image_is_free():
    """Also at distance 0 of the plain L2, where the norm has no derivative."""
    old = np.eye(4, dtype=np.float32)
    f = 3.0 * torch.eye(4)  # the same directions, another length
    f[3] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # but one is far away
    for threshold in (0.0, 0.2):
        method, _ = make(old, threshold=threshold, loss_weight=[0.0, 10.0])
        f.requires_grad_().grad = None
        losses = terms(method, f, torch.arange(4), torch.arange(4), head_with(torch.eye(4)))
        losses["l2"].backward()
        assert losses["l2"].item() == pytest.approx(10 * (math.sqrt(2) - threshold) / 4)
        assert (f.grad[:3] == 0).all() and f.grad[3].norm() > 0.1


def test_the_old_side_is_constant_and_only_the_batch_is_read():
    features = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    before = features.copy()
    method, old = make(features)
    index = torch.tensor([29, 3, 3, 11])
    fetched = method.fetch(index, torch.zeros(4, dtype=torch.long), None)
    assert old.read == [("old_embedding", [29, 3, 3, 11])]
    f = torch.randn(4, 4, requires_grad=True)
    batch = Batch(None, torch.arange(4), index, fetched)
    sum(method(f, batch, head_with(torch.eye(4)), None).values()).backward()
    assert f.grad.norm() > 0 and not fetched["features"].requires_grad
    assert list(method.parameters()) == [] and method.state_dict() == {}
    np.testing.assert_array_equal(features, before)
    np.testing.assert_array_equal(fetched["features"], before[index])


def gradient(f, w, y, features):
    """Gradients by this rank's embeddings, after DDP's mean, and by its centres."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = torch.arange(len(f))[rank * len(f) // size : (rank + 1) * len(f) // size]
    local = f[mine].clone().requires_grad_()
    method, _ = make(features, threshold=0.9)
    head = head_with(w, scale=20.0)
    sum(terms(method, local, y[mine], mine, head).values()).backward()
    return local.grad / size, head.weight.grad


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_give_the_gradient_of_the_whole_batch(world_size):
    rng = torch.Generator().manual_seed(2)
    f, old = torch.randn(16, 8, generator=rng), torch.randn(16, 8, generator=rng)
    w, y = torch.randn(9, 8, generator=rng), torch.randint(0, 9, (16,), generator=rng)
    (one,) = run_on_ranks(1, gradient, f, w, y, old.numpy())
    many = run_on_ranks(world_size, gradient, f, w, y, old.numpy())
    torch.testing.assert_close(torch.cat([g for g, _ in many]), one[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.cat([g for _, g in many]), one[1], rtol=1e-4, atol=1e-7)
