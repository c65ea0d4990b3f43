"""Backbones against golden outputs of the reference networks, and their state-dict keys."""

import copy
import json
from functools import partial

import pytest
import torch
from support.networks import fill
from torch import nn

from backbones import NETWORKS, get_model
from backbones.iresnet import IResNet
from backbones.prelu import PReLU
from backbones.vit import Block, ViT
from bct.errors import BctError
from bct.models.weights import load_backbone

GOLDEN = [
    "r18_512",
    "r18_128",
    "r34_512",
    "r50_512",
    "r50_128",
    "r100_512",
    "mbf_512",
    "mbf_large_512",
    "vit_t_512",
    "vit_t_dp005_mask0_512",
    "vit_s_512",
]


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


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [
        ("r200", 118_833_920, 1807),
        ("r2060", 1_122_301_120, 7 + 18 * 1030 + 24 + 12),
        ("vit_s_dp005_mask_0", 76_023_296, 150),
        ("vit_b", 113_833_472, 282),
        ("vit_b_dp005_mask_005", 113_833_472, 282),
        ("vit_l", 255_684_352, 282),
        ("vit_l_dp005_mask_005", 255_684_352, 282),
        ("vit_h", 756_393_984, 546),
    ],
)
def test_published_sizes(name, parameters, keys):
    with torch.device("meta"):  # no memory, no arithmetic
        model = get_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("name", "drop_path", "mask", "checkpointing"),
    [
        ("vit_t", 0.1, 0.1, False),
        ("vit_t_dp005_mask0", 0.05, 0, False),
        ("vit_s", 0.1, 0.1, False),
        ("vit_s_dp005_mask_0", 0.05, 0, False),
        ("vit_b", 0.1, 0.1, True),
        ("vit_b_dp005_mask_005", 0.05, 0.05, True),
        ("vit_l_dp005_mask_005", 0.05, 0.05, True),
        ("vit_h", 0.1, 0, True),
    ],
)
def test_vit_variants(name, drop_path, mask, checkpointing):
    with torch.device("meta"):
        model = get_model(name)
    depth = len(model.blocks)
    drops = [block.drop for block in model.blocks]
    assert drops == pytest.approx([drop_path * i / (depth - 1) for i in range(depth)])
    assert (model.mask, model.checkpointing) == (mask, checkpointing)


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


@pytest.fixture
def tiny_vit(monkeypatch):
    """A network name; 144 tokens of which training hides 15."""
    monkeypatch.setitem(NETWORKS, "vit_tiny", partial(ViT, 16, 3))
    return "vit_tiny"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_vit_trains_and_returns_fp32(tiny_vit, dtype):
    model = get_model(tiny_vit, 24, dtype).train()
    assert (model.embedding_size, model.amp_dtype) == (24, dtype)
    x = torch.randn(4, 3, 112, 112)
    kinds = {}
    for name in ("patch_embed", "blocks.1.attn.qkv", "blocks.1.mlp.fc2", "blocks.1", "feature.0"):
        hook = partial(lambda name, _, __, out: kinds.update({name: out.dtype}), name)
        model.get_submodule(name).register_forward_hook(hook)
    out = model(x)
    assert out.shape == (4, 24) and out.dtype == torch.float32
    low = dtype or torch.float32
    assert list(kinds.values()) == [low, low, low, torch.float32, torch.float32]
    out.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
        exact = get_model(tiny_vit, 24).eval()
        exact.load_state_dict(model.state_dict())
        assert nn.functional.cosine_similarity(model(x), exact(x)).min() > 0.99


def test_vit_hides_random_tokens_in_training():
    model = ViT(16, 2, drop_path=0, embedding_size=8).train()
    model.blocks = nn.ModuleList()  # without blocks, a token at the head says where it was
    nn.init.constant_(model.mask_token, 7.0)
    seen = {}
    model.norm.register_forward_hook(lambda _, __, out: seen.update(norm=out.detach()))
    model.feature.register_forward_pre_hook(lambda _, x: seen.update(head=x[0].detach()))
    x = torch.randn(3, 3, 112, 112)
    model(x)
    assert seen["norm"].shape == (3, 129, 16)  # int(144 * 0.9)
    head = seen["head"].unflatten(1, (144, 16))
    hidden = (head == 7).all(-1)  # (B, N)
    assert (hidden.sum(1) == 144 - 129).all()
    assert not torch.equal(hidden[0], hidden[1]) and not torch.equal(hidden[1], hidden[2])
    with torch.no_grad():
        model(x)
        again = (seen["head"].unflatten(1, (144, 16)) == 7).all(-1)
        assert not torch.equal(hidden, again)
        model.eval()
        model(x)
    whole = seen["head"].unflatten(1, (144, 16))  # every other token is where it belongs
    torch.testing.assert_close(head[~hidden], whole[~hidden])
    assert not (whole == 7).any()


def test_vit_without_masking_leaves_the_mask_token_alone():
    """A parameter that never gets a gradient would stop DistributedDataParallel."""
    model = ViT(16, 1, mask=0, embedding_size=8).train()
    model(torch.randn(2, 3, 112, 112)).sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert without == ["mask_token"] and not model.mask_token.requires_grad


def test_drop_path_keeps_the_expectation():
    block = Block(16, 8, drop=0.3).train()
    branch = torch.rand(20_000, 2, 3) + 1
    out = block.drop_path(branch)
    dropped = (out == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))  # a sample skips it whole
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(out[~dropped[:, 0]], branch[~dropped[:, 0]] / 0.7)
    torch.testing.assert_close(out.mean(0), branch.mean(0), rtol=0.03, atol=0)
    assert block.eval().drop_path(branch) is branch


def gradients(model, x):
    torch.manual_seed(0)  # the same tokens and branches
    model(x).square().mean().backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["vit", "iresnet"])
def test_checkpointing_changes_no_gradient(kind, dtype):
    x = torch.randn(3, 3, 112, 112)
    if kind == "vit":
        plain = ViT(16, 4, drop_path=0.5, embedding_size=8, amp_dtype=dtype).train()
        saving = copy.deepcopy(plain)
        saving.checkpointing = True
        block = saving.blocks[1]
    else:
        plain = IResNet((1, 2, 3, 1), 8, width=16, stem_stride=2, amp_dtype=dtype).train()
        saving = copy.deepcopy(plain)
        saving.checkpoint_segments = (0, 2, 2, 0)
        block = saving.layer3[0]
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    want, got = gradients(plain, x), gradients(saving, x)
    assert len(calls) == 2  # once forward, once again for backward
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    if kind == "iresnet":  # the docstring's 0.19
        once = plain.layer3[0].bn1.running_mean
        torch.testing.assert_close(block.bn1.running_mean, 1.9 * once)
    with torch.no_grad():
        saving(x)
        saving.eval()(x)
    assert len(calls) == 4


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


def test_weights_of_a_vit_say_their_embedding_size(tiny_vit, tmp_path):
    model = get_model(tiny_vit, 24).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = load_backbone(tmp_path / "model.pt", tiny_vit)
    assert loaded.embedding_size == 24
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
