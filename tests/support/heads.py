"""Heads with given centres, and what they compute, plainly in float64."""

import torch
import torch.nn.functional as F

from bct.training.heads import PartialFC


def dense_loss(f, w, y, margin, scale, filter_above=0.0):
    """The textbook formula in float64, by autograd through arccos."""
    cos = F.normalize(f) @ F.normalize(w).T
    m1, m2, m3 = margin
    target = torch.cos(m1 * torch.acos(cos.gather(1, y[:, None])) + m2) - m3
    if filter_above:
        cos = torch.where(cos > filter_above, torch.zeros_like(cos), cos)
    logits = scale * cos.scatter(1, y[:, None], target)
    return F.cross_entropy(logits, y)


def problem(classes=53, dim=16, batch=24, seed=0):
    rng = torch.Generator().manual_seed(seed)
    f = torch.randn(batch, dim, generator=rng, dtype=torch.float64)
    w = torch.randn(classes, dim, generator=rng, dtype=torch.float64)
    y = torch.randint(0, classes, (batch,), generator=rng)
    f = f + w[y]  # targets away from the wrap-around at theta + m = pi
    return f, w, y


def head_with(w, **options):
    head = PartialFC(w.shape[1], w.shape[0], **options)
    head.weight.data.copy_(w[head.start : head.start + len(head.weight)])
    return head
