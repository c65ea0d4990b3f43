"""The networks by insightface's names: `get_model("r50", embedding_size=512)`."""

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from backbones.iresnet import IResNet
from backbones.mobilefacenet import MobileFaceNet
from backbones.vit import ViT
from bct.errors import BctError

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "r18": partial(IResNet, (2, 2, 2, 2)),
    "r34": partial(IResNet, (3, 4, 6, 3)),
    "r50": partial(IResNet, (3, 4, 14, 3)),
    "r100": partial(IResNet, (3, 13, 30, 3)),
    "r200": partial(IResNet, (6, 26, 60, 6)),
    "r2060": partial(IResNet, (3, 128, 896, 3), checkpoint_segments=(0, 20, 100, 0)),
    "mbf": partial(MobileFaceNet, (1, 4, 6, 2), 2),
    "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
    "vit_t": partial(ViT, 256, 12),
    "vit_t_dp005_mask0": partial(ViT, 256, 12, 0.05, 0.0),
    "vit_s": partial(ViT, 512, 12),
    "vit_s_dp005_mask_0": partial(ViT, 512, 12, 0.05, 0.0),
    "vit_b": partial(ViT, 512, 24, checkpointing=True),
    "vit_b_dp005_mask_005": partial(ViT, 512, 24, 0.05, 0.05, checkpointing=True),
    "vit_l": partial(ViT, 768, 24, checkpointing=True),  # insightface has only the next
    "vit_l_dp005_mask_005": partial(ViT, 768, 24, 0.05, 0.05, checkpointing=True),
    "vit_h": partial(ViT, 1024, 48, 0.1, 0.0, checkpointing=True),
    # small enough to train on a CPU while you wait
    "demo_w16": partial(IResNet, (1, 1, 1, 1), width=16),
    "demo_w24": partial(IResNet, (1, 1, 1, 1), width=24),
    "demo_w32": partial(IResNet, (1, 1, 1, 1), width=32, stem_stride=4),  # 7 times as fast as w24
}


def get_model(
    name: str, embedding_size: int = 512, amp_dtype: torch.dtype | None = None
) -> nn.Module:
    """Builds a backbone: (B, 3, 112, 112) float in [-1, 1] -> (B, embedding_size) float32.

    Args:
        name: a key of NETWORKS.
        embedding_size: D.
        amp_dtype: torch.bfloat16 or torch.float16 for a mixed-precision body, None for fp32.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BctError(f"no network is called {name!r}", f"{hint}choose from {', '.join(NETWORKS)}")
    return NETWORKS[name](embedding_size=embedding_size, amp_dtype=amp_dtype)
