"""AdvBCT: old and new embeddings that a discriminator can't tell apart, within elastic balls.

    loss  = ArcFace(W; f, y) + weight * p2s + weight * (E - e + 1) / E * adv
    p2s   = mean over i with d_i > r_i of (d_i - r_i),   d_i = |n(f_i) - c_y|
    r_i   = R_y + (threshold - R_y) sigmoid(u_y)
    adv   = -log D_new(n(f)) - log D_old(n(o)),          averaged over the batch

c_y and R_y are the centre and the largest radius (after the 1.5 IQR rule) of class y's old
embeddings, u_y is learnt: r_i lies between R_y and the threshold. D is a small network that learns
to tell new from old; what it sends back to the embeddings is multiplied by
-(2 / (1 + exp(-10 p)) - 1), p the progress of the training from 0 to 1. e is the epoch of E.
Classes with fewer than two radii have no p2s.

Paper: Pan et al., Boundary-Aware Backward-Compatible Representation via Adversarial Learning in
Image Retrieval, CVPR 2023; threshold and weight as in the MixBCT benchmark.
Needs of the old model: embeddings and class statistics of the new model's training set.
Differs from the published code, which with parity = "published" is computed as it is:
- D sees old and new in one batch, normalised over all ranks; published, each alone, so that batch
  norm removes just the shift and the scale that tell them apart;
- u has no weight decay, which otherwise brings sigmoid(u) to 1/2 within an epoch;
- p2s is a mean over the offenders of all ranks, not of each rank's own.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import nn

from bct.distributed import mean_of_chosen, sum_over_ranks, world_size
from bct.errors import BctError
from bct.method import Method
from bct.train import main


class AdvBCT(Method):
    defaults = {  # noqa: RUF012
        "threshold": 0.4,
        "adv_weight": 4.0,  # of p2s and of adv
        "hidden": 100,  # width of the discriminator
        "old_embedding": None,  # paths; None: they follow from scenario and old_config
        "class_statistics": None,
    }

    @classmethod
    def needs(cls, cfg):
        return "old_embedding", "class_statistics"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        table = old.table("class_statistics")
        self.register_buffer("centre", table["centre"], persistent=False)  # (C, D)
        self.register_buffer("radius", table["radius"], persistent=False)  # (C,)
        self.register_buffer("valid", table["kept"] > 1, persistent=False)
        undefined = int((~self.valid).sum())
        if undefined == len(self.valid):
            raise BctError(
                "no class has two images, so no class has a radius", "use data with more images"
            )
        if undefined:
            logging.warning("%d classes have one image, so no radius and no p2s", undefined)
        self.boundary = nn.Parameter(torch.rand(cfg.num_classes) * 2 - 1)  # u
        norm = nn.BatchNorm1d(cfg.hidden) if cfg.parity == "published" else JointNorm(cfg.hidden)
        self.discriminator = nn.Sequential(
            nn.Linear(cfg.embedding_size, cfg.hidden), norm, nn.ReLU(), nn.Linear(cfg.hidden, 2)
        )

    def undecayed(self):
        return [] if self.cfg.parity == "published" else [self.boundary]

    def fetch(self, index, labels, rng):
        return {"features": F.normalize(self.old.rows("old_embedding", index))}

    def forward(self, embeddings, batch, head, rng):
        cfg = self.cfg
        f, old = F.normalize(embeddings.float()), batch.old["features"]
        fading = (cfg.num_epoch - math.floor(batch.epoch) + 1) / cfg.num_epoch
        strength = 2 / (1 + math.exp(-10 * batch.epoch / cfg.num_epoch)) - 1
        return {
            "cls": head(embeddings, batch.labels, rng),
            "p2s": cfg.adv_weight * self.point_to_set(f, batch.labels),
            "adv": cfg.adv_weight * fading * self.adversary(_reversed(f, strength), old),
        }

    def point_to_set(self, f: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """f (B, D) unit rows."""
        largest = self.radius[labels]
        limit = largest + (self.cfg.threshold - largest) * self.boundary[labels].sigmoid()
        excess = torch.linalg.vector_norm(f - self.centre[labels], dim=1) - limit  # (B,)
        outside = (excess > 0) & self.valid[labels]
        if self.cfg.parity == "published":
            return torch.where(outside, excess, 0).sum() / outside.sum().clamp_min(1)
        return mean_of_chosen(excess, outside)

    def adversary(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the discriminator, 0 = new, 1 = old; 2 ln 2 is chance."""
        if self.cfg.parity == "published":
            of_new, of_old = self.discriminator(new), self.discriminator(old)
        else:
            of_new, of_old = self.discriminator(torch.cat((new, old))).chunk(2)
        zeros = torch.zeros(len(new), dtype=torch.long, device=new.device)
        return F.cross_entropy(of_new, zeros) + F.cross_entropy(of_old, zeros + 1)


class JointNorm(nn.BatchNorm1d):
    """Batch norm over the batch of all ranks. Without evaluation mode: D is only ever trained."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x) * world_size()
        mean = sum_over_ranks(x.sum(0)) / rows
        variance = sum_over_ranks((x - mean).square().sum(0)) / rows
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None


def _reversed(x: torch.Tensor, strength: float) -> torch.Tensor:
    """x; its gradient times -strength."""
    return _Reverse.apply(x, strength)


if __name__ == "__main__":
    main(AdvBCT, "configs/demo.py")
