"""A network made ready to infer and nothing else: the same function in less time."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from backbones.gem_small import Residual
from backbones.iresnet import Block, IResNet


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Multiplies batch norms in eval mode into the layer they follow, in place.

    A block's first batch norm stays: the convolution behind it pads its output with zeros.
    Embeddings differ by rounding, about 1e-5 of the largest value in fp32.

    Args:
        model: any that get_model builds, in eval mode. It can't be trained or exported afterwards:
            keys and values of its state_dict are others.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            pairs = list(pairwise(module._modules))
        else:
            pairs = _PAIRS.get(type(module), _BY_NAME.get(_full_name(module), []))
        for name, norm in pairs:
            layer, norm_layer = getattr(module, name), getattr(module, norm)
            kinds = type(layer), type(norm_layer)  # timm's own kinds of them do more than these
            if kinds == (nn.Conv2d, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(layer, norm_layer)
            elif kinds == (nn.Linear, nn.BatchNorm1d):
                fused = fuse_linear_bn_eval(layer, norm_layer)
            else:
                continue
            setattr(module, name, fused)
            setattr(module, norm, nn.Identity())
    return model.requires_grad_(False)


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


_PAIRS = {  # (layer, the batch norm right behind it); in an nn.Sequential the order says it
    IResNet: [("conv1", "bn1"), ("fc", "features")],
    Block: [("conv1", "bn2"), ("conv2", "bn3")],
    Residual: [("conv1", "bn1"), ("conv2", "bn2")],
}
_BY_NAME = {  # faces need not wait for torchvision, and timm may not be there
    f"{system}.models.resnet.{name}": [(f"conv{i}", f"bn{i}") for i in range(1, layers + 1)]
    for system in ("torchvision", "timm")
    for name, layers in (("ResNet", 1), ("BasicBlock", 2), ("Bottleneck", 3))
} | {"backbones.timm_nets.TimmNet": [("projection_dim", "bn")]}
