"""Losses of distances between embeddings beside the classification: batch-hard triplets and the
centre loss, as person re-identification has them (TransReID's recipe, which AdvBCT's follows).

Triplet loss, for rows f_i with labels y_i, d(a, b) = sqrt(max(|a - b|^2, 1e-12)):

    p_i = max_{j: y_j  = y_i} d(f_i, f_j),    n_i = min_{j: y_j != y_i} d(f_i, f_j)
    margin None    mean_i log(1 + exp(p_i - n_i))
    margin m       mean_i max(p_i - n_i + m, 0)

Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017. It needs batches
in which every class has several images: images_per_class. A row whose batch has no other class
counts 0. parity="published": j is one of the rank's own rows; "corrected": of all ranks' rows, so
that the loss of a batch does not depend on how it is cut.

Centre loss, for centres c of all classes, beside them the update after each batch of N rows:

    mean_i |f_i - c_{y_i}|^2
    corrected    c_k -= rate * sum_{i: y_i = k} (c_k - f_i) / (1 + #{i: y_i = k})
    published    c_k -= rate * (2 / N) sum_{i: y_i = k} (c_k - f_i)

Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, eq. 4.
The published code has another SGD step on the loss's mean: centres then follow the more slowly the
larger the batch is. Either is that of all ranks' rows, whose centres thus stay equal; it takes no
part in the optimiser, neither in its rate nor in its decay. With gradient_acc it follows each
micro-batch.

Both see embeddings as they are, of any length.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bct.distributed import all_gather, gather_rows, joined_parts, rank, world_size
from bct.streams import generator

_LEAST = 1e-12  # of a squared distance: the root has a finite gradient


class MetricTerms(nn.Module):
    """What a head adds to its classification loss: (embeddings, labels) -> scalar.

    Args:
        triplet_weight, centre_weight: of the two losses; 0: it is left out.
        margin: of the triplets; None: the soft margin.
        centre_rate: of the centres' own steps.
        shape: (C, D), of the centres.
        published: see above.
        seed: of the centres, N(0, 1).

    Attributes:
        centres: buffer (C, D), whole on every rank; None without centre loss.
    """

    def __init__(
        self,
        triplet_weight: float,
        margin: float | None,
        centre_weight: float,
        centre_rate: float,
        shape: tuple[int, int],
        published: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.triplet_weight, self.margin, self.published = triplet_weight, margin, published
        self.centre_weight, self.centre_rate = centre_weight, centre_rate
        drawn = None
        if centre_weight:
            drawn = torch.randn(shape, generator=generator("cpu", seed, "centre loss"))
        self.register_buffer("centres", drawn)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        embeddings = embeddings.float()
        loss = embeddings.new_zeros(())
        if self.triplet_weight:
            triplets = triplet_loss if self.published else triplet_loss_of_all
            loss = loss + self.triplet_weight * triplets(embeddings, labels, self.margin)
        if self.centre_weight:
            apart = (embeddings - self.centres[labels]).square().sum(1)
            loss = loss + self.centre_weight * apart.mean()
            self._follow(all_gather(embeddings.detach()), all_gather(labels))
        return loss

    @torch.no_grad()
    def _follow(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        if not self.training:
            return
        found, where = labels.unique(return_inverse=True)
        apart = self.centres[labels] - rows
        summed = rows.new_zeros(len(found), rows.shape[1]).index_add_(0, where, apart)
        if self.published:
            step = summed * (2 / len(rows))
        else:
            step = summed / (1 + where.bincount(minlength=len(found)))[:, None]
        self.centres[found] -= self.centre_rate * step


def triplet_loss(
    rows: torch.Tensor, labels: torch.Tensor, margin: float | None = None
) -> torch.Tensor:
    """The batch-hard triplet loss of rows (B, D) with labels int64 (B,) among themselves."""
    return _of_anchors(rows, labels, rows, labels, margin).mean()


def triplet_loss_of_all(
    rows: torch.Tensor, labels: torch.Tensor, margin: float | None = None
) -> torch.Tensor:
    """The same of all ranks' rows, the same on all ranks. Each differentiates the part of its own
    anchors; DDP's mean is the gradient of the whole."""
    if world_size() == 1:
        return triplet_loss(rows, labels, margin)
    everyone, theirs = gather_rows(rows), all_gather(labels)
    own = everyone.chunk(world_size())[rank()]
    return joined_parts(_of_anchors(own, labels, everyone, theirs, margin).sum() / len(everyone))


def _of_anchors(
    rows: torch.Tensor,
    labels: torch.Tensor,
    others: torch.Tensor,
    theirs: torch.Tensor,
    margin: float | None,
) -> torch.Tensor:
    """Each anchor's loss, (B,). The hardest are found by matrix products, which round; then their
    distances are those of differences, with gradients."""
    same = labels[:, None] == theirs  # (B, N)
    with torch.no_grad():
        squares = others.square().sum(1) - 2 * rows @ others.t()  # without the anchor's own
        farthest = squares.masked_fill(~same, -torch.inf).argmax(1)
        nearest = squares.masked_fill(same, torch.inf).argmin(1)
    gap = _distance(rows, others[farthest]) - _distance(rows, others[nearest])
    losses = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return losses.where(~same.all(1), 0.0)


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().sum(1).clamp_min(_LEAST).sqrt()
