"""AdvBCT: old and new embeddings that a discriminator can't tell apart, within elastic balls.

    loss  = weight * p2s + weight * (E - e + 1) / E * adv      (+ pairs with "old_distance")
    p2s   = mean over i with d_i > r_i of (d_i - r_i),   d_i = |n(f_i) - c_y|,   n(v) = v / |v|
    r_i   = R_y + (threshold - R_y) sigmoid(u_y)        boundary = "elastic"
          = R_y                                        boundary = "fixed"
          = |n(o_i) - n(c_y)|, and d_i = |n(f_i) - n(c_y)|      boundary = "old_distance"
    adv   = -log D_new(n(f)) - log D_old(n(o)),          averaged over the batch

f_i is the new embedding of an image, o_i the old one, y its class. c_y and R_y are the centre and
the largest radius (after the 1.5 IQR rule) of class y's old embeddings: constants, like o. u_y is
learnt: r_i lies between R_y and the threshold. D is a small network that learns to tell new from
old; what it sends back to the embeddings is multiplied by -(2 / (1 + exp(-10 p)) - 1), p the
progress of the training from 0 to 1. e is the epoch of E. Classes with fewer than two radii have
no p2s, but with "old_distance", which needs no radius. pairs is RACT's contrast, that of
methods/HotRefresh. The training adds a classification loss to it.

Paper: Pan et al., Boundary-Aware Backward-Compatible Representation via Adversarial Learning in
Image Retrieval, CVPR 2023, whose code has threshold 1 and weight 1; the defaults, 0.4 and 4, are
those of the MixBCT benchmark. In the paper's code D sees f and o as they are (raw).
Differs from the published code, which with published = True is computed as it is:
- D sees old and new in one batch, normalised over all ranks; published, each alone, so that batch
  norm removes just the shift and the scale that tell them apart;
- u has no weight decay, which otherwise brings sigmoid(u) to 1/2 within an epoch;
- p2s is a mean over the offenders of all ranks, not of each rank's own;
- the fixed boundary is the ball that holds the old class, which the elastic one begins with;
  published, it is the smallest radius, a ball that all old embeddings but one lie outside of.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from bct.distributed import all_reduce, mean_of_chosen, sum_over_ranks
from bct.training.pairwise import compared, contrast


class AdvBCTLoss(nn.Module):
    """The terms. Its parameters, u and D, are trained with the network's.

    Args:
        centre: float32 (C, D), class centres of the old embeddings; radius: (C,), the largest
            of each class; kept: int (C,), how many radii it has.
        hidden: width of D.
        boundary: "elastic", "fixed" or "old_distance".
        smallest: (C,), the smallest radius of each class: the published fixed boundary's.
        adversarial: with D and its term.
        raw: D sees embeddings of any length. Not without `published`.
        temperature, topk: of pairs.
    """

    def __init__(
        self,
        centre: torch.Tensor,
        radius: torch.Tensor,
        kept: torch.Tensor,
        threshold: float = 0.4,
        weight: float = 4.0,
        hidden: int = 100,
        published: bool = False,
        *,
        boundary: str = "elastic",
        smallest: torch.Tensor | None = None,
        adversarial: bool = True,
        raw: bool = False,
        temperature: float = 0.01,
        topk: int = 10,
    ):
        super().__init__()
        self.threshold, self.weight, self.published, self.raw = threshold, weight, published, raw
        self.way, self.temperature, self.topk = boundary, temperature, topk
        if boundary == "old_distance":
            centre, valid = F.normalize(centre), kept > 0
        else:
            valid = kept > 1
        if boundary == "fixed" and published:
            radius = smallest
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("radius", radius, persistent=False)
        self.register_buffer("valid", valid, persistent=False)
        if boundary == "elastic":
            self.boundary = nn.Parameter(torch.rand(len(centre)) * 2 - 1)  # u
        self.discriminator = None
        if adversarial:
            norm = nn.BatchNorm1d(hidden) if published else JointNorm(hidden)
            self.discriminator = nn.Sequential(
                nn.Linear(centre.shape[1], hidden), norm, nn.ReLU(), nn.Linear(hidden, 2)
            )

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        old: torch.Tensor,
        epoch: float,
        epochs: int,
        present: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The terms p2s, adv and pairs, weighted, whose means over ranks are those of the global
        batch.

        Args:
            embeddings: float (B, D), new; labels: int64 (B,); old: (B, D), of the same images.
            epoch: e with the part of it that is done, from 0; epochs: E.
            present: bool (B,), which old embeddings there are: D and pairs see no others. None:
                all. Not published.
        """
        f, o = F.normalize(embeddings), F.normalize(old)
        terms = {"p2s": self.weight * self.point_to_set(f, labels, o, present)}
        if self.discriminator is not None:
            fading = (epochs - math.floor(epoch) + 1) / epochs
            strength = 2 / (1 + math.exp(-10 * epoch / epochs)) - 1
            new, old = (embeddings, old) if self.raw else (f, o)
            adv = self.adversary(_Reverse.apply(new, strength), old, present)
            terms["adv"] = self.weight * fading * adv
        if self.way == "old_distance":
            own, families = compared(f, o, labels, self.topk, True, self.published, present)
            terms["pairs"] = contrast(own, families, self.temperature, present)
        return terms

    def point_to_set(
        self,
        f: torch.Tensor,
        labels: torch.Tensor,
        old: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """p2s of unit rows f (B, D); old: (B, D), of "old_distance"."""
        centre, valid = self.centre[labels], self.valid[labels]
        if self.way == "old_distance":
            limit = torch.linalg.vector_norm(old - centre, dim=1)
            valid = valid if present is None else valid & present
        else:
            limit = self.radius[labels]
        if self.way == "elastic":
            limit = limit + (self.threshold - limit) * self.boundary[labels].sigmoid()
        excess = torch.linalg.vector_norm(f - centre, dim=1) - limit  # (B,)
        outside = (excess > 0) & valid
        if self.published:
            return torch.where(outside, excess, 0).sum() / outside.sum().clamp_min(1)
        return mean_of_chosen(excess, outside)

    def adversary(
        self, new: torch.Tensor, old: torch.Tensor, present: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-entropy of the discriminator, 0 = new, 1 = old; 2 ln 2 is chance."""
        if present is not None:
            return self._adversary_of_some(new, old, present)
        if self.published:
            of_new, of_old = self.discriminator(new), self.discriminator(old)
        else:
            of_new, of_old = self.discriminator(torch.cat((new, old))).chunk(2)
        zeros = torch.zeros(len(new), dtype=torch.long, device=new.device)
        return F.cross_entropy(of_new, zeros) + F.cross_entropy(of_old, zeros + 1)

    def _adversary_of_some(self, new, old, present) -> torch.Tensor:
        logits = self.discriminator(torch.cat((new, old[present])))
        is_old = torch.arange(len(logits), device=new.device) >= len(new)
        each = F.cross_entropy(logits, is_old.long(), reduction="none")
        return mean_of_chosen(each, ~is_old) + mean_of_chosen(each, is_old)


class JointNorm(nn.BatchNorm1d):
    """Batch norm over the batch of all ranks. Without evaluation mode: D is only ever trained."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = all_reduce(torch.tensor(float(len(x)), device=x.device))
        mean = sum_over_ranks(x.sum(0)) / rows
        variance = sum_over_ranks((x - mean).square().sum(0)) / rows
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class _Reverse(torch.autograd.Function):
    """x; its gradient times -strength."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None
