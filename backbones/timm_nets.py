"""timm's networks as trunks, in AdvBCT's embedding model. timm is an optional extra, and downloads
nothing here: weights start at random, init_from brings others."""

import difflib
import importlib
import re
import warnings
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import nn

from bct.errors import BctError

PREFIX = "timm:"
_OWN = ("convnet.", "projection_dim.", "bn.")


class TimmNet(nn.Module):
    """A timm trunk without its classifier - linear without bias - batch norm.

    The module names are AdvBCT's, so that its checkpoints load as they are: convnet.*,
    projection_dim.weight, bn.*.

    Args:
        name: of timm, e.g. resnet18. Names of older versions, such as swsl_resnet18, and those with
            a tag that says which weights are meant, are the same trunk: the weights are not taken.
        embedding_size: D.
        amp_dtype: autocast type of the trunk, None for fp32. The linear layer and the batch norm
            always run in fp32.

    Input (B, 3, H, W) float: of any size for convolutions, of the size in timm's name (224 if there
    is none) for most transformers. Output (B, D) float32, not normalised.

    Raises:
        BctError: timm is not installed or has no such network; images of another size.
    """

    def __init__(self, name: str, embedding_size: int = 512, amp_dtype: torch.dtype | None = None):
        super().__init__()
        self.name, self.embedding_size, self.amp_dtype = name, embedding_size, amp_dtype
        self.convnet = _trunk(name)
        # some have a layer behind what they call features
        features = getattr(self.convnet, "head_hidden_size", None) or self.convnet.num_features
        self.projection_dim = nn.Linear(features, embedding_size, bias=False)
        self.bn = nn.BatchNorm1d(embedding_size)
        patches = getattr(self.convnet, "patch_embed", None)
        self.side = patches.img_size if getattr(patches, "strict_img_size", False) else None
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.side is not None and tuple(x.shape[2:]) != tuple(self.side):
            raise BctError(
                f"{PREFIX}{self.name} takes images of {self.side[1]}x{self.side[0]}, these are "
                f"{x.shape[3]}x{x.shape[2]}",
                f"set image_size={self.side[0]}, or use a ResNet",
            )
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            x = self.convnet(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.bn(self.projection_dim(x.float().flatten(1)))


def _trunk(name: str) -> nn.Module:
    timm = _timm()
    # a name may be a file's: timm would look up others than these elsewhere, also in the net
    plain = re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII)
    if not plain or not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name[:60], timm.list_models(), n=1)
        hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise BctError(
            f"timm has no network {name[:60]!r}",
            f"{hint}see python -c \"import timm; print(timm.list_models('*resnet*'))\"",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of older versions
            return timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BctError(
            f"timm can't build {name} ({str(error).splitlines()[0][:80]})",
            f"leave its tag out: {PREFIX}{name.partition('.')[0]}",
        ) from None


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise BctError(
            "networks timm:... need timm, which is not installed",
            'pip install -e ".[timm]", or use torchvision\'s ResNets: resnet18, gem_resnet50, ...',
        ) from None


def own_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state_dict by our keys, which are AdvBCT's; that of a trunk alone, as timm has it (its
    ResNets torchvision too), becomes convnet.*. Its classifier is then left over."""
    if any(key.startswith(_OWN[:2]) for key in state):
        return dict(state)
    return {f"convnet.{key}": value for key, value in state.items()}


def width(state: Mapping[str, torch.Tensor]) -> int | None:
    """The embedding size in a state_dict by our keys, None for a trunk alone."""
    projection = state.get("projection_dim.weight")
    return len(projection) if projection is not None and projection.dim() == 2 else None
