"""Modules that every rank holds whole: kept equal by DDP, their batch statistics by averaging."""

import inspect

import torch
from easydict import EasyDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bct import distributed
from bct.training.heads import PartialFC


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """DDP around a module that every rank holds whole; itself if there is nothing to keep equal."""
    trainable = any(p.requires_grad for p in module.parameters())
    if distributed.world_size() == 1 or not trainable or isinstance(module, PartialFC):
        return module
    # batch statistics are each rank's own, see share_statistics; torch 2.15 renamed the switch
    options = inspect.signature(DistributedDataParallel).parameters
    new_name = "forward_sync_buffers" in options
    keep_buffers = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # otherwise it lays the gradients out anew after the first step, and where one lies decides
        # in which order gloo adds it up: a resumed run of 3 ranks or more would round differently
        find_unused_parameters=device.type == "cpu" and distributed.world_size() > 2,
        **keep_buffers,
    )


def bare(module: nn.Module) -> nn.Module:
    """The module in replicate's wrapper, with its own methods; itself without one.

    What is computed with it after the wrapper's forward is in the mean of the gradients, too.
    """
    return module.module if isinstance(module, DistributedDataParallel) else module


def share_statistics(cfg: EasyDict, backbone: nn.Module) -> None:
    """Averages batch-norm statistics over ranks; the published code keeps those of rank 0."""
    if cfg.parity == "corrected":
        distributed.average_buffers(backbone)
