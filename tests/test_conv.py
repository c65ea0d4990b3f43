"""The CPU's fast convolutions and the folded network, each held against its plain twin."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_backbones import fill
from torch import nn

from backbones import get_model
from backbones.conv import Conv2d, strided_weight_grad, winograd, winograd_weight_grad
from backbones.inference import fold_batch_norm
from backbones.iresnet import IResNet
from bct.weights import load_backbone

# of the largest value: F(4 x 4, 3 x 3) in fp32 loses about three bits to a direct sum
CLOSE = 3e-5


def close(got, want, limit=CLOSE):
    assert got.shape == want.shape and got.isfinite().all()
    assert (got - want).abs().max() <= limit * want.abs().max()


def draw(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def in_float64(x, weight, grad, stride=1):
    """Output and both gradients."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    out = F.conv2d(x, weight, None, stride, padding=1)
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad.double())


# whole tiles, cut ones, a side below a tile's, several rounds, the last of them shorter
SHAPES = [(2, 3, 8, 5, 12), (3, 4, 7, 6, 9), (1, 2, 3, 2, 1), (11, 3, 20, 4, 28)]


@pytest.mark.parametrize(("batch", "channels", "height", "outputs", "width"), SHAPES)
def test_winograd_is_the_convolution(batch, channels, height, outputs, width):
    x, weight = draw(batch, channels, height, width), draw(outputs, channels, 3, 3)
    grad, bias = draw(batch, outputs, height, width), torch.randn(outputs)
    want, _, want_weight = in_float64(x, weight, grad)
    out = winograd(x, weight)
    close(out, want)
    assert out.is_contiguous(memory_format=torch.channels_last)
    close(winograd(x, weight, bias), want + bias.view(-1, 1, 1))
    close(winograd_weight_grad(x, grad), want_weight)


@pytest.mark.parametrize("side", [8, 7, 40])  # 40: several rounds
def test_strided_weight_gradient(side):
    x, weight = draw(3, 4, side, side + 2), draw(5, 4, 3, 3)
    grad = draw(3, 5, -(-side // 2), -(-(side + 2) // 2))
    close(strided_weight_grad(x, grad), in_float64(x, weight, grad, stride=2)[2], 1e-5)


@pytest.mark.parametrize(("outputs", "stride"), [(64, 1), (128, 1), (64, 2)])
def test_training_takes_the_fast_way(outputs, stride):
    layer = Conv2d(64, outputs, 3, stride, padding=1, bias=False)
    layer.to(memory_format=torch.channels_last)
    x = draw(8, 64, 9, 9).requires_grad_()
    out = layer(x)
    assert type(out.grad_fn).__name__ == "_ConvBackward"
    grad = torch.randn_like(out).contiguous()  # not channels_last
    out.backward(grad)
    want = in_float64(x.detach(), layer.weight.detach(), grad, stride)
    for got, wanted in zip((out.detach(), x.grad, layer.weight.grad), want, strict=True):
        close(got, wanted)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again = layer(x)
        (slope,) = torch.autograd.grad(again.square().sum(), x, create_graph=True)
        slope.sum().backward()


def test_everything_else_is_torchs():
    """Bitwise: few tiles or channels, other sizes, precisions, layouts, no gradient."""

    def same(layer, x):
        plain = copy.deepcopy(layer)
        plain.__class__ = nn.Conv2d
        assert torch.equal(layer(x), plain(x))

    few = Conv2d(32, 64, 3, padding=1, bias=False)
    many = Conv2d(64, 128, 3, padding=1, bias=False)
    same(many, draw(15, 64, 8, 8))
    x = draw(16, 64, 8, 8)
    with pytest.raises(AssertionError):  # or `same` would notice nothing
        same(many, x)
    same(few, x[:, :32].contiguous(memory_format=torch.channels_last))
    for options in ({"kernel_size": 1}, {"kernel_size": 3}, {"kernel_size": 3, "stride": 3}):
        same(Conv2d(64, 128, **options, bias=False), x)
    same(Conv2d(64, 128, 3, padding=1, groups=2, bias=False), x)
    same(many.double(), x.double())
    same(many.float(), x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):
        same(many, x)
    with torch.no_grad():
        same(many, x)
    many.requires_grad_(False)
    same(many, x)


def test_a_network_has_the_same_gradients():
    fast = IResNet((1, 1, 1, 1), 16, width=64, stem_stride=4).train()
    for module in fast.modules():
        if isinstance(module, nn.PReLU):  # rounding next to its kink would change the slope
            nn.init.ones_(module.weight)
    plain = copy.deepcopy(fast)
    for module in plain.modules():
        if isinstance(module, Conv2d):
            module.__class__ = nn.Conv2d
    x, target = torch.rand(8, 3, 112, 112) * 2 - 1, torch.randn(8, 16)
    gradients = []
    for model in (fast, plain):
        (model(x) - target).square().mean().backward()
        parts = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        gradients.append(torch.cat(parts))
    got, want = gradients
    assert not torch.equal(got, want)  # or both went the same way
    assert (got - want).norm() <= 1e-4 * want.norm()


# ---- folding


@pytest.mark.parametrize(
    ("network", "left"), [("r18", 9), ("demo_w32", 5), ("mbf", 0), ("vit_t", 0)]
)
def test_folding_changes_nothing_but_rounding(network, left):
    plain = get_model(network, 24).eval()
    fill(plain.state_dict())
    folded = fold_batch_norm(copy.deepcopy(plain))
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert len(norms) == left  # the first of each block, and the last of the body
    assert not any(p.requires_grad for p in folded.parameters())
    x = torch.rand(3, 3, 112, 112) * 2 - 1
    with torch.inference_mode():
        got, want = folded(x), plain(x)
    close(got, want, 1e-4)
    assert F.cosine_similarity(got.double(), want.double()).min() > 1 - 1e-6


def test_a_folded_network_takes_the_fast_way():
    plain = get_model("demo_w32", 24).eval()
    fill(plain.state_dict())
    folded = fold_batch_norm(copy.deepcopy(plain))
    direct = copy.deepcopy(folded)
    for module in direct.modules():
        module.transform = False
    inputs = {}
    folded.layer3[0].conv1.register_forward_pre_hook(lambda _, x: inputs.update(x=x[0]))
    with torch.inference_mode():
        x = torch.rand(16, 3, 112, 112) * 2 - 1
        close(folded(x), direct(x), 1e-4)
        layer, x = folded.layer3[0].conv1, inputs["x"]  # 64 to 128 channels
        assert torch.equal(layer(x), winograd(x, layer.weight, layer.bias))
        assert not torch.equal(layer(x), direct.layer3[0].conv1(x))


def test_loading_folds_when_asked_to(tmp_path):
    model = get_model("demo_w32", 16).eval()
    fill(model.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    kinds = {}
    for name, options in {
        "plain": {},
        "folded": {"fold": True},
        "mixed": {"fold": True, "amp_dtype": torch.bfloat16},
    }.items():
        loaded = load_backbone(tmp_path / "model.pt", "demo_w32", **options)
        assert loaded.embedding_size == 16 and not loaded.training
        kinds[name] = type(loaded.bn1)
        if name != "mixed":
            with torch.inference_mode():
                close(loaded(x), model(x), 1e-4)
    assert kinds == {"plain": nn.BatchNorm2d, "folded": nn.Identity, "mixed": nn.BatchNorm2d}
