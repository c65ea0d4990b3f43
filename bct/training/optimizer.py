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
    twice, the backbone's first, whose "lr_factor" it is. With a bias_lr_factor or bias_weight_decay
    the biases of a group follow it in one of their own, of the same name.

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
    factor, decay = cfg.get("bias_lr_factor", 1.0), cfg.get("bias_weight_decay")
    if factor != 1 or decay is not None:
        named = [pair for part in (backbone, method, head) for pair in part.named_parameters()]
        biases = [value for name, value in named if name.rpartition(".")[2] == "bias"]
        groups = [part for group in groups for part in _biases_apart(group, biases, factor, decay)]
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


def _biases_apart(
    group: dict[str, Any], biases: list[nn.Parameter], factor: float, decay: float | None
) -> list[dict[str, Any]]:
    """A group without its biases, and them with their factor and decay; "undecayed" ones have none,
    whatever their kind."""
    own = [p for p in group["params"] if any(p is q for q in biases)]
    rest = [p for p in group["params"] if not any(p is q for q in own)]
    if not own:
        return [group]
    apart = {**group, "params": own, "lr_factor": group.get("lr_factor", 1.0) * factor}
    if decay is not None:
        apart.setdefault("weight_decay", decay)
    return [{**group, "params": rest}, apart]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group a step's rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def group_named(optimizer: torch.optim.Optimizer, name: str) -> list[nn.Parameter]:
    """The parameters of the groups called so; none if there is no such group."""
    return [p for g in optimizer.param_groups if g["name"] == name for p in g["params"]]


def learning_rate(cfg: EasyDict, step: int, steps_per_epoch: int) -> float:
    """The rate of a step (0-based): decay_epoch's tenths if it is set, else lr_policy. With
    lr_steps="epoch" it is that of the epoch's first step.

    Two published recipes, as timm has them; e counts epochs and t steps, from 0, T is all steps:

        AdvBCT, re-identification: lr_policy="timm_cosine", lr_steps="epoch", warmup_epoch=5,
            warmup_from=0.01, lr_floor=0.002
            e < 5: lr (0.01 + 0.99 e / 5); then lr (0.002 + 0.998 (1 + cos(pi e / num_epoch)) / 2)
        OpenCompatible: lr_policy="timm_cosine", warmup_epoch=1, warmup_from=0.001, lr_floor=0.01
            likewise of t and T; or decay_epoch=[10, 20] in the cosine's place, lr / 10 from each on

    As AdvBCT published it, its scheduler drives an optimiser that does not train: lr stays what it
    is, which is lr_policy="constant", warmup_epoch=0.
    """
    if cfg.lr_steps == "epoch":
        step -= step % steps_per_epoch
    total, warmup = steps_per_epoch * cfg.num_epoch, steps_per_epoch * cfg.warmup_epoch
    if cfg.decay_epoch:
        if cfg.warmup_from and step < warmup:
            return _warming(step, warmup, cfg.lr, cfg.warmup_from)
        return cfg.lr * 0.1 ** sum(step // steps_per_epoch >= decay for decay in cfg.decay_epoch)
    if cfg.get("convention") == "insightface":
        warmup = max(warmup, 0)  # there, a negative one is none
    if like_insightface(cfg):
        # counted in micro-batches, the last one of a step decides; and nothing has set the first
        step, total, warmup = (n * cfg.gradient_acc for n in (step, total, warmup))
        step += cfg.gradient_acc - 1
        if step == 0:
            return cfg.lr
    shares = cfg.warmup_from, cfg.lr_floor
    return lr_at(step, total, warmup, cfg.lr, cfg.lr_power, cfg.lr_policy, *shares)


def loss_share(cfg: EasyDict) -> float:
    """What the loss of each of gradient_acc micro-batches counts: they are averaged. insightface
    adds them up."""
    return 1.0 if like_insightface(cfg) else 1 / cfg.gradient_acc


def lr_at(
    step: int,
    total: int,
    warmup: int,
    base: float,
    power: float,
    policy: str = "poly",
    start: float = 0.0,
    floor: float = 0.0,
) -> float:
    """Learning rate of a step (0-based): over the warm-up linear from the share `start` of the base
    to all of it; then constant, or down to the share `floor`, as a polynomial or half a cosine.

    Of "timm_cosine" the wave has begun with step 0, and the warm-up hides its beginning: there is
    a step down where the warm-up ends.

    A negative warm-up starts part of the way down, as the reference's warmup_epoch = -1 does.
    """
    if step < warmup:
        return _warming(step, warmup, base, start)
    if policy == "constant" or total <= warmup:  # a run that is longer by now was warm-up alone
        return base
    progress = (step - warmup) / (total - warmup)
    if policy == "cosine":
        share = (1 + math.cos(math.pi * progress)) / 2
    elif policy == "timm_cosine":
        share = (1 + math.cos(math.pi * step / total)) / 2
    else:
        share = max(1 - progress, 0.0) ** power
    return base * (floor + (1 - floor) * share)


def _warming(step: int, warmup: int, base: float, start: float) -> float:
    return base * start + base * (1 - start) * step / warmup
