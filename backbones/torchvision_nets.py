"""torchvision's classification networks as backbones, the narrow ResNets of BT-2 and FCT, and
OpenCompatible's with generalised means.

Weights start at random, nothing is downloaded; files of torchvision's weights load like our own.
"""

from collections.abc import Mapping

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from backbones.gem import GeM
from bct.errors import BctError

NATIVE = {  # name: width of what its classifier reads
    **dict.fromkeys(("resnet18", "resnet34"), 512),
    **dict.fromkeys(("resnet50", "resnet101", "resnet152"), 2048),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d"), 2048),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), 2048),
    **dict.fromkeys(("alexnet", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), 4096),
    "vit_b_16": 768,
}
_CLASSIFIERS = ("fc.", "classifier.6.", "heads.head.", "kernel", "old_fc.")  # the last: OpenBCT's
_CLASSIFIERS += ("fc_classifier.", "fc_classify.")  # OpenCompatible's
_EMBEDDING = "fc_emb."  # what OpenCompatible calls the layer of the embedding
_BT2 = "alexnet."  # what BT-2 calls its AlexNet, and its VGGs
_BT2_LAST = {f"classifier.6.{part}": f"embedding.{part}" for part in ("weight", "bias")}


class TorchvisionNet(nn.Module):
    """A network of torchvision without its classifier, and a linear layer if the width asks for it.

    With the native width D = NATIVE[name] embeddings are what the classifier would read: in a
    ResNet the mean of the last map, which is not negative. Another D puts a linear layer behind.

    `narrow` is the ResNet of BT-2 and FCT: its last block itself ends in D channels, so that
    embeddings of any width are not negative, and convolutions start as torch's do. BT-2 mostly
    divides them by their norm, which changes no cosine.

    `gem` is the ResNet of OpenCompatible: generalised means of the last map, p = 3, and a linear
    layer for any width. `learnt`: p is trained, too.

    Args:
        name: a key of NATIVE.
        embedding_size: D.
        narrow, gem, learnt: see above; for ResNets.
        amp_dtype: autocast type of the body, None for fp32. A ResNet's mean and the linear layer
            always run in fp32.

    Input (B, 3, H, W) float: 224 x 224 for a ViT, otherwise any size, from 63 x 63 on for AlexNet
    and 32 x 32 for VGG. Output (B, D) float32, not normalised. Raises BctError for other sizes.
    """

    def __init__(
        self,
        name: str,
        narrow: bool = False,
        gem: bool = False,
        learnt: bool = False,
        embedding_size: int = 512,
        amp_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.name, self.embedding_size, self.amp_dtype = name, embedding_size, amp_dtype
        self.body = torchvision.models.get_model(name, weights=None)
        linear = [key for key, m in self.body.named_modules() if isinstance(m, nn.Linear)]
        self.body.set_submodule(linear[-1], nn.Identity())  # the classifier
        if hasattr(self.body, "layer4"):
            self.body.avgpool = GeM(learnt=learnt) if gem else _Mean()
        if narrow:
            _narrow(self.body, NATIVE[name], embedding_size)
        same = narrow or (embedding_size == NATIVE[name] and not gem)
        self.embedding = nn.Identity() if same else nn.Linear(NATIVE[name], embedding_size)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check(*x.shape[2:])
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            x = self.body(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.embedding(x.float())

    def _check(self, height: int, width: int) -> None:
        if self.name.startswith("vit") and (height, width) != (224, 224):
            raise BctError(
                f"{self.name} takes images of 224x224, these are {width}x{height}",
                "set image_size=224, or use a ResNet",
            )
        smallest = 63 if self.name == "alexnet" else 32 if self.name.startswith("vgg") else 1
        if min(height, width) < smallest:
            raise BctError(
                f"{self.name} leaves nothing of images of {width}x{height}",
                f"set image_size to {smallest} or more, or use a ResNet",
            )


class _Mean(nn.Module):
    """(B, C, H, W) -> (B, C, 1, 1) float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3), keepdim=True)


def _narrow(resnet: nn.Module, native: int, width: int) -> None:
    """Makes the last block end in `width` channels, as BT-2 does: its shortcut becomes a
    convolution with batch norm."""
    block = resnet.layer4[-1]
    if width != native:
        if isinstance(block, Bottleneck):
            block.conv3 = nn.Conv2d(block.conv3.in_channels, width, 1, bias=False)
            block.bn3 = nn.BatchNorm2d(width)
        else:
            block.conv1 = nn.Conv2d(native, width, 3, padding=1, bias=False)
            block.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            block.bn1, block.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        shortcut = nn.Conv2d(native, width, 1, bias=False)
        block.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()


def own_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state_dict by torchvision's keys, OpenBCT's, OpenCompatible's or BT-2's, by ours;
    classifiers are left out.

    OpenCompatible's are torchvision's behind a "backbone.", which readers of files strip, and
    fc_emb. BT-2's AlexNet and VGG have the linear layer of the embedding in the classifier's place.
    """
    if any(key.startswith("body.") for key in state):
        return dict(state)
    if any(key.startswith(_BT2) for key in state):
        state = {k.removeprefix(_BT2): v for k, v in state.items() if k.startswith(_BT2)}
        return {_BT2_LAST.get(k, f"body.{k}"): v for k, v in state.items()}
    kept = {k: v for k, v in state.items() if not k.startswith(_CLASSIFIERS)}
    return {
        k.replace(_EMBEDDING, "embedding.", 1) if k.startswith(_EMBEDDING) else f"body.{k}": v
        for k, v in kept.items()
    }


def width(name: str, state: Mapping[str, torch.Tensor]) -> int | None:
    """The embedding size of network `name` in a state_dict by our keys, None if it is not said."""
    if "embedding.weight" in state:
        return len(state["embedding.weight"])
    if name.startswith("gem_"):
        return None
    last = [value for key, value in state.items() if key.startswith("body.layer4")]
    means = [value for value in last if value.dim() == 1]  # all of batch norms
    return len(means[-1]) if means else NATIVE[name]
