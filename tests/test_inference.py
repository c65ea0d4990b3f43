"""The folded network, held against its plain twin."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.networks import fill
from torch import nn

from backbones import get_model
from backbones.inference import fold_batch_norm
from bct.models.weights import load_backbone


def close(got, want, limit):
    """`limit` is a part of the largest value."""
    assert got.shape == want.shape and got.isfinite().all()
    assert (got - want).abs().max() <= limit * want.abs().max()


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
