"""The networks by insightface's names: `get_model("r50", embedding_size=512)`."""

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from backbones.iresnet import IResNet
from backbones.mobilefacenet import MobileFaceNet
from bct.errors import BctError

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "r18": partial(IResNet, (2, 2, 2, 2)),
    "r34": partial(IResNet, (3, 4, 6, 3)),
    "r50": partial(IResNet, (3, 4, 14, 3)),
    "r100": partial(IResNet, (3, 13, 30, 3)),
    "r200": partial(IResNet, (6, 26, 60, 6)),
    "mbf": partial(MobileFaceNet, (1, 4, 6, 2), 2),
    "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
    # small enough to train on a CPU while you wait
    "demo_w16": partial(IResNet, (1, 1, 1, 1), width=16),
    "demo_w24": partial(IResNet, (1, 1, 1, 1), width=24),
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
