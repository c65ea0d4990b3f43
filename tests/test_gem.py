"""Generalised-mean pooling and the networks that end in it."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.foreign_files import OpenCompatibleNetwork
from support.networks import settle
from torch import nn

from backbones import IMAGE_NETWORKS, get_model, own_state
from backbones.gem import GeM
from backbones.inference import fold_batch_norm

SIZES = [(112, 112), (64, 64), (128, 64), (32, 33)]


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
@pytest.mark.parametrize("learnt", [False, True])
def test_pooling_as_published(shared, p, learnt):
    folder = shared / "golden" / "landmarks_reid" / "losses"
    arrays = np.load(folder / "inputs_and_grads.npz")
    said = json.loads((folder / "expected.json").read_text())[f"gem/p={p}"]
    x = torch.from_numpy(arrays["gem_x"]).requires_grad_()
    pool = GeM(p, learnt).double()
    out = pool(x)
    loss = (out.flatten() * torch.arange(out.numel(), dtype=torch.float64).cos()).sum()
    loss.backward()
    want = torch.from_numpy(arrays[f"gem/p={p}/out"]).flatten(1)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(loss.item(), said["loss"], rtol=1e-9, atol=0)
    grad = torch.from_numpy(arrays[f"gem/p={p}/grad_x"])
    torch.testing.assert_close(x.grad, grad, rtol=1e-9, atol=1e-12)
    assert (x.grad[x < 1e-6] == 0).all() and (x < 1e-6).any()
    assert [name for name, _ in pool.named_parameters()] == (["p"] if learnt else [])
    if learnt:
        torch.testing.assert_close(pool.p.grad.item(), said["grad_p"], rtol=1e-9, atol=0)


def test_pooling_stays_finite():
    """Cubes of half-precision maps, exponents that training has driven off, maps of zeros."""
    x = torch.full((1, 2, 3, 3), 60000.0, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        out = GeM()(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x.float().mean((2, 3)))
    pool = GeM(-1.0, learnt=True)
    zeros = torch.zeros(2, 3, 4, 4, requires_grad=True)
    for module in (pool, GeM()):
        out = module(zeros)
        out.sum().backward()
        assert out.isfinite().all() and zeros.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["gem_w16", "gem_w32"])
def test_the_small_network_trains_on_any_size(name, dtype):
    torch.manual_seed(0)
    for height, width in SIZES:
        model = get_model(name, 24, dtype).train()
        out = model(torch.randn(4, 3, height, width))
        assert out.shape == (4, 24) and out.dtype == torch.float32
        out.square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert name in IMAGE_NETWORKS


def test_the_small_network_by_hand():
    model = settle(get_model("gem_w16", 10)).double()
    images = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    conv, norm, _, *blocks = model.body
    x = F.relu(norm(F.conv2d(images, conv.weight, stride=4, padding=3)))
    for block in blocks:
        inner = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
        short, short_norm = block.shortcut
        x = F.relu(
            block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
            + short_norm(F.conv2d(x, short.weight, stride=2))
        )
    assert x.shape == (2, 128, 2, 2)
    pooled = x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
    linear, norm = model.embedding
    torch.testing.assert_close(model.pool(x), pooled)
    torch.testing.assert_close(model.embedding(pooled), norm(pooled @ linear.weight.t()))
    model, images = model.float(), images.float()
    with torch.inference_mode():
        got, want = model(images), norm(F.linear(pooled.float(), linear.weight))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_small_network_folds():
    plain = settle(get_model("gem_w16", 10))
    folded = fold_batch_norm(copy.deepcopy(plain))
    assert not [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    x = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-4)


# ---- OpenCompatible's ResNets


@pytest.mark.parametrize("learnt", [False, True])
def test_opencompatibles_network(learnt):
    torch.manual_seed(0)
    theirs = settle(OpenCompatibleNetwork())
    name = "gem_resnet18_learnt" if learnt else "gem_resnet18"
    given = {k.removeprefix("backbone."): v for k, v in theirs.state_dict().items()}
    if learnt:
        given["avgpool.p"] = torch.tensor([3.0])
    state, size = own_state(name, given)
    model = get_model(name, 16).eval()
    model.load_state_dict(state)
    assert size == 16 and own_state(name, model.state_dict())[1] == 16
    x = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-4)
    model.train()(torch.randn(4, 3, 64, 32)).square().sum().backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert ("body.avgpool.p" in grads) == learnt
    if learnt:
        assert grads["body.avgpool.p"].abs() > 0


@pytest.mark.parametrize(
    ("name", "width"), [("gem_resnet18", 512), ("gem_resnet50", 2048), ("gem_resnet101", 2048)]
)
def test_the_layer_of_the_embedding_is_always_there(name, width):
    with torch.device("meta"):
        model = get_model(name, width)
    assert model.embedding.weight.shape == (width, width) and model.embedding.bias is not None
    trunk = {k.removeprefix("body."): v for k, v in model.state_dict().items() if "body." in k}
    assert own_state(name, trunk)[1] is None  # ImageNet's weights say no width
