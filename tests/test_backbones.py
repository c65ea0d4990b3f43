"""Backbones against golden outputs of the reference networks, and their state-dict keys."""

import json
import math

import pytest
import torch
from torch import nn

from backbones import NETWORKS, get_model
from backbones.prelu import PReLU
from bct.errors import BctError
from bct.weights import load_backbone

GOLDEN = [
    "r18_512",
    "r18_128",
    "r34_512",
    "r50_512",
    "r50_128",
    "r100_512",
    "mbf_512",
    "mbf_large_512",
]


def fill(state):
    """The deterministic fill that golden/README.md describes."""
    for k, (name, tensor) in enumerate(state.items()):
        if name.endswith("num_batches_tracked"):
            continue
        i = torch.arange(tensor.numel(), dtype=torch.float64)
        s = torch.sin(0.37 * i + 1.3 * k).reshape(tensor.shape)
        if name.endswith("running_var"):
            value = 1 + 0.2 * s
        elif name.endswith("running_mean"):
            value = 0.05 * s
        elif tensor.dim() >= 2:
            value = s * math.sqrt(2 / (tensor.numel() / tensor.shape[0]))
        elif name.endswith("bias"):
            value = 0.05 * s
        elif name.endswith("prelu.weight"):
            value = 0.25 + 0.05 * s
        else:
            value = 1 + 0.1 * s
        tensor.copy_(value)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(shared, name):
    want = json.loads((shared / "golden/backbones/expected.json").read_text())[name]
    network, size = name.rsplit("_", 1)
    model = get_model(network, int(size)).eval()
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == want["num_parameters"]
    assert len(state) == want["num_keys"]
    if want["keys_and_shapes"]:
        assert [[key, list(value.shape)] for key, value in state.items()] == want["keys_and_shapes"]
    fill(state)
    x = torch.sin(0.013 * torch.arange(2 * 3 * 112 * 112, dtype=torch.float64))
    with torch.inference_mode():
        out = model(x.reshape(2, 3, 112, 112).float())
    torch.testing.assert_close(
        out[:, :8], torch.tensor(want["output_first8"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        out.norm(dim=1), torch.tensor(want["output_norm"]), rtol=1e-4, atol=0
    )


def test_r200_is_the_published_size():
    with torch.device("meta"):
        model = get_model("r200")
    assert sum(p.numel() for p in model.parameters()) == 118_833_920
    assert len(model.state_dict()) == 1807


@pytest.mark.parametrize("name", ["demo_w16", "demo_w24", "mbf"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_trains_and_returns_fp32(name, dtype):
    model = get_model(name, 24, dtype).train()
    out = model(torch.randn(4, 3, 112, 112))
    assert out.shape == (4, 24) and out.dtype == torch.float32
    out.square().mean().backward()
    for key, parameter in model.named_parameters():
        if key != "features.weight":
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    if name != "mbf":  # IResNet fixes the scale of its embedding
        assert not model.features.weight.requires_grad and (model.features.weight == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fast_prelu_equals_torchs(dtype):
    ours, theirs = PReLU(5), nn.PReLU(5)
    ours.weight.data = theirs.weight.data = torch.tensor([0.25, -0.5, 0.0, 1.0, 2.0])
    if dtype == torch.float64:
        ours, theirs = ours.double(), theirs.double()
    x = torch.randn(3, 5, 7, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    grad = torch.randn(3, 5, 7, 9).to(dtype)
    y, z = ours(a), nn.functional.prelu(b, theirs.weight.to(dtype))
    y.backward(grad)
    z.backward(grad)
    assert type(y.grad_fn).__name__ == "_RowPReLUBackward"
    one_rounding = {"rtol": 2**-7, "atol": 0} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(y, z, **one_rounding)
    torch.testing.assert_close(a.grad, b.grad, **one_rounding)
    a_sum = {"rtol": 0.05, "atol": 0.5} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, **a_sum)


def test_unknown_network():
    with pytest.raises(BctError, match="did you mean r50"):
        get_model("r5O")
    assert "r50" in NETWORKS


# ---- loading weights


@pytest.fixture
def model(tmp_path):
    model = get_model("demo_w16", 16).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return model


def outputs(a, b):
    x = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        return a(x), b(x)


@pytest.mark.parametrize("wrapper", ["state_dict_backbone", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "backbone.", ""])
def test_checkpoints_of_others_load(model, tmp_path, wrapper, prefix):
    state = {f"{prefix}{k}": v for k, v in model.state_dict().items() if "num_batches" not in k}
    extra = {"cls_fc.weight": torch.zeros(3, 16), "BCT_FC.weight": torch.zeros(16, 3)}
    torch.save({wrapper: state | extra, "epoch": 3}, tmp_path / "other.pt")
    loaded = load_backbone(tmp_path / "other.pt", "demo_w16")
    assert loaded.embedding_size == 16 and not loaded.training
    torch.testing.assert_close(*outputs(model, loaded))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("demo_w24", ["does not fit network demo_w24", "of another shape"]),
        ("r18", ["missing", "layer1.1"]),
    ],
)
def test_weights_of_another_network(model, tmp_path, network, words):
    with pytest.raises(BctError) as info:
        load_backbone(tmp_path / "model.pt", network)
    assert all(word in str(info.value) for word in words), str(info.value)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(BctError, match="do not exist"):
        load_backbone(tmp_path / "none.pt", "r18")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(BctError, match="can't be read as weights"):
        load_backbone(tmp_path / "text.pt", "r18")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    with pytest.raises(BctError, match="no state_dict"):
        load_backbone(tmp_path / "dict.pt", "r18")
    with pytest.raises(BctError, match="does not say which network"):
        load_backbone(tmp_path / "dict.pt")


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/bct_was_here",)


def test_a_malicious_checkpoint_runs_nothing(tmp_path):
    torch.save({"state_dict": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(BctError, match="can't be read as weights"):
        load_backbone(tmp_path / "bad.pt", "r18")
