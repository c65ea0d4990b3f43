"""torchvision's networks and the small one as backbones: widths, values, gradients, files."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.networks import settle
from torch import nn

from backbones import IMAGE_NETWORKS, NETWORKS, get_model
from backbones.torchvision_nets import NATIVE
from bct.errors import BctError
from bct.files import write_json
from bct.models.weights import load_backbone


@pytest.fixture(scope="module")
def resnet18():
    """torchvision's own, with its classifier."""
    torch.manual_seed(0)
    return settle(torchvision.models.resnet18(weights=None, num_classes=7))


@torch.inference_mode()
def what_the_classifier_reads(model, classifier, x):
    read = []
    hook = classifier.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].clone()))
    model(x)
    hook.remove()
    return read[0]


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "alexnet", "vgg13_bn", "vit_b_16"])
def test_any_width(name):
    with torch.device("meta"):  # no memory, no arithmetic
        theirs = torchvision.models.get_model(name, weights=None, num_classes=1)
        count = sum(p.numel() for p in theirs.parameters()) - (NATIVE[name] + 1)
        for size in (NATIVE[name], 24):
            model = get_model(name, size)
            side = 224 if name == "vit_b_16" else 64
            out = model.embedding(model.body(torch.empty(2, 3, side, side)))
            assert out.shape == (2, size) and model.embedding_size == size
            projection = 0 if size == NATIVE[name] else (NATIVE[name] + 1) * size
            assert sum(p.numel() for p in model.parameters()) == count + projection


@pytest.mark.parametrize(
    ("name", "size", "millions"), [("resnet50_narrow", 128, 22.8), ("resnet18_narrow", 64, None)]
)
def test_narrow_sizes(name, size, millions):
    with torch.device("meta"):
        model = get_model(name, size)
    total = sum(p.numel() for p in model.parameters())
    if millions:  # BT-2's count with a classifier of 10 classes
        assert round((total + 10 * size) / 1e6, 1) == millions
    block = model.body.layer4[-1]
    assert block.downsample[0].weight.shape == (size, NATIVE[name[:8]], 1, 1)
    native = get_model("resnet18_narrow", 512)  # of the native width it is the plain network
    assert native.body.layer4[-1].downsample is None


def test_the_embedding_is_what_the_classifier_reads(resnet18):
    x = torch.randn(3, 3, 40, 36)
    want = what_the_classifier_reads(resnet18, resnet18.fc, x)
    model = get_model("resnet18", 512).eval()
    model.body.load_state_dict(resnet18.state_dict(), strict=False)
    with torch.inference_mode():
        got = model(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (got >= 0).all() and (got > 0).any()

    wide = get_model("resnet18", 700).eval()
    wide.body = model.body
    with torch.inference_mode():
        linear = want.double() @ wide.embedding.weight.double().t() + wide.embedding.bias.double()
        torch.testing.assert_close(wide(x), linear.float(), rtol=1e-4, atol=1e-5)


def test_alexnet_reads_what_its_classifier_reads():
    theirs = torchvision.models.alexnet(weights=None).eval()
    with torch.device("meta"):
        model = get_model("alexnet", 4096)
    model.body.load_state_dict(theirs.state_dict(), strict=False, assign=True)
    x = torch.randn(2, 3, 63, 70)
    with torch.inference_mode():
        got = model.eval()(x)
    want = what_the_classifier_reads(theirs, theirs.classifier[6], x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [5, 600])
def test_the_last_block_of_a_narrow_resnet(size):
    """Its formula: relu(bn(conv(relu(bn(conv x)))) + bn(conv x)), then the mean of the map."""
    model = settle(get_model("resnet18_narrow", size))
    seen = []
    model.body.layer4[0].register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    with torch.inference_mode():
        got = model(torch.randn(2, 3, 64, 64))
        block, x = model.body.layer4[1], seen[0]
        out = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, padding=1)))
        out = block.bn2(F.conv2d(out, block.conv2.weight, padding=1))
        conv, norm = block.downsample
        want = F.relu(out + norm(F.conv2d(x, conv.weight))).mean((2, 3))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert got.shape == (2, size) and (got >= 0).all()


@pytest.mark.parametrize("side", [28, 33, 64])
def test_conv4_by_hand(side):
    model = settle(get_model("conv4_w32", 10))
    x = images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        for conv, norm in zip(model.body[0:16:4], model.body[1:16:4], strict=True):
            x = F.relu(norm(F.conv2d(x, conv.weight, padding=1)))  # ReLU, then the pool
            x = F.max_pool2d(x, 2, ceil_mode=True)
        linear, norm = model.embedding
        want = norm(F.linear(F.adaptive_avg_pool2d(x, 2).flatten(1), linear.weight))
        torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-5)
    assert model.embedding_size == 10


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "size", "side"),
    [("resnet18", 512, 28), ("resnet18_narrow", 24, 32), ("conv4_w32", 24, 28)],
)
def test_trains_and_returns_fp32(name, size, side, dtype):
    torch.manual_seed(1)
    model = get_model(name, size, dtype).train()
    x = torch.randn(4, 3, side, side)
    kinds = []
    hook = model.body.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    out = model(x)
    hook.remove()
    assert out.shape == (4, size) and out.dtype == torch.float32
    conv = name == "conv4_w32"  # whose body has no mean in fp32 at its end
    assert kinds == [dtype if dtype and conv else torch.float32]
    out.square().mean().backward()
    for key, parameter in model.named_parameters():  # a parameter without one would stop DDP
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.dtype == torch.float32
    if dtype:
        exact = get_model(name, size).eval()
        exact.load_state_dict(model.state_dict())
        with torch.inference_mode():
            low, high = model.eval()(x), exact(x)
        assert not torch.equal(low, high)
        assert F.cosine_similarity(low, high).min() > 0.99


def test_images_it_cannot_take():
    with torch.device("meta"):
        nets = {name: get_model(name, 8) for name in ("vit_b_16", "alexnet", "vgg13_bn")}
    for name, side, words in (
        ("vit_b_16", 112, "224x224"),
        ("alexnet", 62, "63 or more"),
        ("vgg13_bn", 31, "32 or more"),
    ):
        with pytest.raises(BctError, match=words):
            nets[name](torch.empty(2, 3, side, side))
        with pytest.raises(RuntimeError if name != "vit_b_16" else AssertionError):
            nets[name].body(torch.empty(2, 3, side, side, device="meta"))  # it is true


def test_names():
    assert NATIVE.keys() <= IMAGE_NETWORKS.keys()
    assert not NETWORKS.keys() & IMAGE_NETWORKS.keys()
    with pytest.raises(BctError, match="did you mean resnet50"):
        get_model("resnet5O")
    with pytest.raises(BctError, match="conv4_w32"):
        get_model("nonsense")


# ---- files


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 20), ("resnet18_narrow", 20), ("conv4_w64", 20)]
)
def test_our_files_load(name, size, tmp_path):
    model = settle(get_model(name, size))
    state = copy.copy(model.state_dict()) | {"cls_fc.weight": torch.zeros(3, size)}
    torch.save(state, tmp_path / "model.pt")
    write_json(tmp_path / "model.json", {"network": name})
    x = torch.randn(2, 3, 32, 32)
    loaded = load_backbone(tmp_path / "model.pt")
    folded = load_backbone(tmp_path / "model.pt", fold=True)
    norms = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms == [] and not loaded.training and loaded.embedding_size == size
    with torch.inference_mode():
        want = model(x)
        assert torch.equal(loaded(x), want)
        torch.testing.assert_close(folded(x), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    other = "conv4_w32" if name.startswith("conv4") else "resnet34"
    with pytest.raises(BctError, match=f"does not fit network {other} .*"):
        load_backbone(tmp_path / "model.pt", other)


def test_torchvisions_files_load(resnet18, tmp_path):
    torch.save(resnet18.state_dict(), tmp_path / "resnet18-5c106cde.pth")
    loaded = load_backbone(tmp_path / "resnet18-5c106cde.pth", "resnet18")
    x = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        torch.testing.assert_close(resnet18.fc(loaded(x)), resnet18(x))
    assert loaded.embedding_size == 512
    with pytest.raises(BctError, match="does not fit network resnet50_narrow"):
        load_backbone(tmp_path / "resnet18-5c106cde.pth", "resnet50_narrow")
