"""Optimiser and learning rate of a run."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from easydict import EasyDict
from torch import nn

from bct.conventions import like_insightface
from bct.training.heads import PartialFC
from bct.training.row_sgd import RowSGD


def make_optimizer(
    cfg: EasyDict, backbone: nn.Module, method: nn.Module, head: nn.Module, fused: bool = True
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW. The parameter groups are named: "body" is what gradient clipping acts on,
    backbone and method; "undecayed" what these keep from weight decay; "head" the head's. Of
    the first two those without parameters are left out. With a backbone_lr_factor they are there
    twice, the backbone's first, whose "lr_factor" it is.

    SGD moves the centres that a step has sampled and lets the others follow later, see RowSGD;
    Adam's steps on a row without a gradient are no linear map, so they sweep all of them.

    fused has to be False with a loss scaler: torch's fused kernels skip a step when the number of
    ranks that overflowed is 1, and with replicated gradients it is all of them.
    """
    free = [*method.undecayed(), *(backbone.undecayed() if hasattr(backbone, "undecayed") else [])]
    if cfg.backbone_lr_factor == 1:
        groups = _groups([*backbone.parameters(), *method.parameters()], free)
    else:
        groups = [
            {**group, "lr_factor": cfg.backbone_lr_factor}
            for group in _groups(backbone.parameters(), free)
        ]
        groups += _groups(method.parameters(), free)
    groups.append({"name": "head", "params": list(head.parameters())})
    groups = [group for group in groups if group["params"] or group["name"] == "head"]
    if cfg.optimizer in ("adam", "adamw"):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
        return kind(groups, cfg.lr, weight_decay=cfg.weight_decay, fused=fused)
    sampled = isinstance(head, PartialFC) and head.sample_rate < 1
    kind = RowSGD if sampled else torch.optim.SGD
    optimizer = kind(
        groups, cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=fused
    )
    if sampled:
        head.row_sgd = optimizer
    return optimizer


def _groups(parameters: Iterable[nn.Parameter], free: list[nn.Parameter]) -> list[dict[str, Any]]:
    """ "body" and "undecayed" of those that are trained. free: what has no weight decay."""
    trained = [p for p in parameters if p.requires_grad]
    apart = [p for p in free if any(p is q for q in trained)]
    body = [p for p in trained if not any(p is q for q in free)]
    return [
        {"name": "body", "params": body},
        {"name": "undecayed", "params": apart, "weight_decay": 0.0},
    ]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group a step's rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def group_named(optimizer: torch.optim.Optimizer, name: str) -> list[nn.Parameter]:
    """The parameters of the groups called so; none if there is no such group."""
    return [p for g in optimizer.param_groups if g["name"] == name for p in g["params"]]


def learning_rate(cfg: EasyDict, step: int, steps_per_epoch: int) -> float:
    """The rate of a step (0-based): decay_epoch's tenths if it is set, else lr_policy."""
    if cfg.decay_epoch:
        return cfg.lr * 0.1 ** sum(step // steps_per_epoch >= decay for decay in cfg.decay_epoch)
    total, warmup = steps_per_epoch * cfg.num_epoch, steps_per_epoch * cfg.warmup_epoch
    if cfg.get("convention") == "insightface":
        warmup = max(warmup, 0)  # there, a negative one is none
    if like_insightface(cfg):
        # counted in micro-batches, the last one of a step decides; and nothing has set the first
        step, total, warmup = (n * cfg.gradient_acc for n in (step, total, warmup))
        step += cfg.gradient_acc - 1
        if step == 0:
            return cfg.lr
    return lr_at(step, total, warmup, cfg.lr, cfg.lr_power, cfg.lr_policy)


def loss_share(cfg: EasyDict) -> float:
    """What the loss of each of gradient_acc micro-batches counts: they are averaged. insightface
    adds them up."""
    return 1.0 if like_insightface(cfg) else 1 / cfg.gradient_acc


def lr_at(
    step: int, total: int, warmup: int, base: float, power: float, policy: str = "poly"
) -> float:
    """Learning rate of a step (0-based): linear from 0 over the warm-up, then down to 0, as a
    polynomial or as half a cosine wave.

    A negative warm-up starts part of the way down, as the reference's warmup_epoch = -1 does.
    """
    if step < warmup:
        return base * step / warmup
    progress = (step - warmup) / (total - warmup)
    if policy == "cosine":
        return base / 2 * (1 + math.cos(math.pi * progress))
    return base * max(1 - progress, 0.0) ** power
