"""Fills networks with weights and statistics as if they had been trained."""

import math

import torch
from torch import nn


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


def settle(model):
    """Running statistics that are neither 0 nor 1, as after training; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def randomly(model, seed=0):
    """The model with other batch-norm weights and statistics than it is made with, in eval mode."""
    rng = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=rng) + (0.5 if "var" in name else -0.3))
    return model.eval()
