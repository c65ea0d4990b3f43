"""The networks by name: `get_model("r50", embedding_size=512)`.

NETWORKS are those for aligned faces, by insightface's names. IMAGE_NETWORKS take images of other
sizes, too, and most of them have torchvision's names. "timm:" before a name of timm's is AdvBCT's
network with that trunk.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from backbones.conv4 import Conv4
from backbones.gem_small import GemSmall
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


def _torchvision(name: str, **options) -> nn.Module:
    from backbones.torchvision_nets import TorchvisionNet  # faces need not wait for torchvision

    return TorchvisionNet(name, **options)


_TORCHVISION = {
    **{
        name: partial(_torchvision, name)
        for name in (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
            *("alexnet", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vit_b_16"),
        )
    },
    **{  # BT-2's and FCT's
        f"{name}_narrow": partial(_torchvision, name, narrow=True)
        for name in ("resnet18", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2")
    },
    **{  # OpenCompatible's
        f"gem_{name}{end}": partial(_torchvision, name, gem=True, learnt=bool(end))
        for end in ("", "_learnt")
        for name in ("resnet18", "resnet50", "resnet101")
    },
}
IMAGE_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **_TORCHVISION,
    "conv4_w32": partial(Conv4, 32),
    "conv4_w64": partial(Conv4, 64),
    "gem_w16": partial(GemSmall, 16),
    "gem_w32": partial(GemSmall, 32),
}
_TIMM = "timm:"


def get_model(
    name: str, embedding_size: int = 512, amp_dtype: torch.dtype | None = None
) -> nn.Module:
    """Builds a backbone: (B, 3, H, W) float -> (B, embedding_size) float32.

    H = W = 112 and values in [-1, 1] for the networks in NETWORKS; those in IMAGE_NETWORKS say
    which sizes they take.

    Args:
        name: a key of NETWORKS or IMAGE_NETWORKS, or "timm:" and a name of timm's.
        embedding_size: D.
        amp_dtype: torch.bfloat16 or torch.float16 for a mixed-precision body, None for fp32.
    """
    if str(name).startswith(_TIMM):
        from backbones.timm_nets import TimmNet  # timm may not be there, and others can do without

        return TimmNet(name.removeprefix(_TIMM), embedding_size, amp_dtype)
    known = NETWORKS | IMAGE_NETWORKS
    if name not in known:
        name = str(name)[:60]  # it may be a file's, and of any length
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BctError(
            f"no network is called {name!r}", f"{hint}choose from {', '.join(known)}, timm:..."
        )
    return known[name](embedding_size=embedding_size, amp_dtype=amp_dtype)


def own_state(
    name: str, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], int | None]:
    """A network's state_dict, maybe another system's, by our keys, and its embedding size.

    The size is None for weights that do not say it, which are none of network `name`.
    """
    if name.startswith(_TIMM):
        from backbones import timm_nets

        state = timm_nets.own_keys(state)
        return state, timm_nets.width(state)
    if name in _TORCHVISION:
        from backbones import torchvision_nets

        state = torchvision_nets.own_keys(state)
        return state, torchvision_nets.width(name.removesuffix("_narrow"), state)
    # all others end in a batch norm over the embedding
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    return dict(state), len(means[-1]) if means else None
