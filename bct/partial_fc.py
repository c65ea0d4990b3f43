"""Classification heads: PartialFC with an angular margin, and a plain linear layer with bias.

A head is called as head(embeddings, labels, rng) and returns the mean cross-entropy of the global
batch. Both keep working with one process and without a process group.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from bct.distributed import (
    all_gather,
    all_reduce,
    contiguous_share,
    gather_rows,
    generator,
    rank,
    world_size,
)
from bct.errors import BctError

_INIT_BLOCK = 4096  # classes per random stream when centres are initialised
BLOCK = 2**28  # logits held at once: 1 GiB
_COS_MAX = 1 - 1e-7  # keeps the slope of arccos finite


def margin_logit(
    cos: torch.Tensor, m1: float, m2: float, m3: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's logit under a combined margin, and its derivative.

        psi(theta) = cos(m1 theta + m2) - m3,   theta = arccos(cos)

    (1, m, 0) is ArcFace, (1, 0, m) CosFace, (m, 0, 0) SphereFace. Where m1 theta + m2 exceeds pi
    the cosine would rise again; there psi continues as cos(theta) - m2 sin(m2) - m3 when m1 = 1
    (ArcFace's own rule) and as -2 - cos(m1 theta + m2) - m3 otherwise (SphereFace's), so that it
    always falls.
    Sources: Deng et al., CVPR 2019, eq. 4; Liu et al., CVPR 2017, eq. 7.

    Args:
        cos: (K,) float32, cosines of the targets; clamped to +-(1 - 1e-7).

    Returns:
        psi (K,) and d psi / d cos (K,).
    """
    cos = cos.clamp(-_COS_MAX, _COS_MAX)
    theta = torch.acos(cos)
    angle = m1 * theta + m2
    psi, slope = torch.cos(angle), m1 * torch.sin(angle) / torch.sin(theta)
    beyond = angle > math.pi
    if m1 == 1:
        tail, tail_slope = cos - m2 * math.sin(m2), torch.ones_like(cos)
    else:
        tail, tail_slope = -2 - psi, -slope
    return torch.where(beyond, tail, psi) - m3, torch.where(beyond, tail_slope, slope)


class _Block(NamedTuple):
    """Scores of N rows against a run of c classes.

    numerators: (N, c), exp(logit - top); top: (N,), the largest logit of each row in this run.
    rows, columns: (K,), the targets in it; psi, slope: (K,), their margin_logit and its derivative.
    dropped: bool (N, c), what the filter has set to 0; None without a filter.
    """

    numerators: torch.Tensor
    top: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    psi: torch.Tensor
    slope: torch.Tensor
    dropped: torch.Tensor | None


def _score(e, w, inverse_norm, target, margin, scale, filter_above) -> _Block:
    # e (N, D), w (c, D), inverse_norm (c,), target (N,) column, or -1: in another run or rank
    # (N, c), cosines; MKL takes two thirds of the time when the longer matrix comes first
    logits = torch.mm(e, w.t()) if w.is_cuda else torch.mm(w, e.t()).t()
    logits.mul_(inverse_norm)
    rows = torch.nonzero(target >= 0).squeeze(1)
    columns = target[rows]
    psi, slope = margin_logit(logits[rows, columns], *margin)
    dropped = None
    if filter_above > 0:
        dropped = logits > filter_above
        dropped[rows, columns] = False
        logits.masked_fill_(dropped, 0.0)
    logits[rows, columns] = psi
    logits.mul_(scale)
    top = logits.amax(1)
    return _Block(logits.sub_(top[:, None]).exp_(), top, rows, columns, psi, slope, dropped)


class _ShardedMarginSoftmax(torch.autograd.Function):
    """Mean over N gathered rows of -log softmax over all ranks' classes, with its exact gradient.

    Normalising the centres, scaling, margin and cross-entropy are one function, so that the only
    (N, n) numbers alive are the ones that are cosines, then logits, then probabilities, and the
    normalised centres never exist: cos = (e w^T) / |w|, and with g the gradient by the cosines,

        dL/de = (g / |w|) w          dL/dw = (g / |w|)^T e - w (w . (g / |w|)^T e) / |w|^2

    More than `most` logits are taken in runs of classes, whose maxima and sums are joined at the
    end. Only one run exists at once; for the gradient each is scored anew.
    """

    @staticmethod
    def forward(ctx, e, w, target, margin, scale, filter_above, most):
        # e (N, D) unit rows; w (n, D); target (N,) column of the row's class, or -1: other rank
        inverse_norm = torch.linalg.vector_norm(w, dim=1).clamp_min_(1e-12).reciprocal_()
        ctx.how = margin, scale, filter_above
        # not smaller than need be: on busy cores every operation waits for its slowest thread
        ctx.run = max(most // max(len(e), 1), 1)
        kept, tops, totals, target_logit = (), [], [], e.new_zeros(len(e))
        for start in range(0, len(w), ctx.run):
            here = slice(start, start + ctx.run)
            own = own_columns(target, start, len(w[here]))
            block = _score(e, w[here], inverse_norm[here], own, *ctx.how)
            tops.append(block.top)
            totals.append(block.numerators.sum(1))
            target_logit.index_copy_(0, block.rows, block.psi * scale)
            if len(e) * len(w) <= most:
                kept = block
            del block  # before the next one is made
        tops, totals = torch.stack(tops), torch.stack(totals)  # (runs, N)
        top = all_reduce(tops.amax(0), dist.ReduceOp.MAX)  # (N,)
        totals *= (tops - top).exp_()
        sums = all_reduce(torch.stack((totals.sum(0), target_logit)))  # one collective for both
        ctx.save_for_backward(e, w, target, inverse_norm, top, sums[0], *kept)
        return (sums[0].log() + top - sums[1]).mean()  # log-sum-exp: exact at any depth

    @staticmethod
    def backward(ctx, grad):
        e, w, target, inverse_norm, top, total, *kept = ctx.saved_tensors
        weight = ctx.how[1] * grad / len(e)
        grad_e = torch.zeros_like(e) if ctx.needs_input_grad[0] else None
        grad_w = torch.empty_like(w) if ctx.needs_input_grad[1] else None
        for start in range(0, len(w), ctx.run):
            here = slice(start, start + ctx.run)
            if kept:
                block = _Block(*kept)
            else:
                own = own_columns(target, start, len(w[here]))
                block = _score(e, w[here], inverse_norm[here], own, *ctx.how)
            g, rows, columns = block.numerators, block.rows, block.columns
            # in place: a second backward would need the numerators again
            g.mul_((weight / total * (block.top - top).exp_())[:, None])
            g[rows, columns] = (g[rows, columns] - weight) * block.slope
            if block.dropped is not None:
                g.masked_fill_(block.dropped, 0.0)
            g.mul_(inverse_norm[here])
            if grad_e is not None:
                grad_e.addmm_(g, w[here])
            if grad_w is not None:
                out = torch.mm(g.t(), e, out=grad_w[here])
                radial = torch.linalg.vecdot(w[here], out).mul_(inverse_norm[here].square())
                out.addcmul_(w[here], radial[:, None], value=-1)
            del block, g
        return grad_e, grad_w, None, None, None, None, None


def prototype_softmax(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    prototypes: torch.Tensor,
    start: int,
    margin: tuple[float, float, float] = (1.0, 0.0, 0.0),
    scale: float = 64.0,
) -> torch.Tensor:
    """PartialFC's loss against given class prototypes instead of learnt centres.

    Args:
        embeddings: (B, D), this rank's; labels: (B,) global classes, -1 leaves a row out.
        prototypes: (n, D), this rank's share of the classes, the first of which is `start`.

    Returns:
        Mean over the labelled rows of the global batch; 0 when there is none.
    """
    e, labels = gather_rows(F.normalize(embeddings.float())), all_gather(labels)
    e, labels = e[labels >= 0], labels[labels >= 0]
    if len(labels) == 0:
        return e.sum()
    target = own_columns(labels, start, len(prototypes))
    return _ShardedMarginSoftmax.apply(e, prototypes, target, tuple(margin), scale, 0.0, BLOCK)


def class_share(num_classes: int) -> tuple[int, int]:
    """(first class, number of classes) of this rank. BctError with fewer classes than ranks."""
    if num_classes < world_size():
        raise BctError(
            f"{num_classes} classes can't be cut over {world_size()} ranks", "use fewer ranks"
        )
    return contiguous_share(num_classes, rank(), world_size())


def own_columns(labels: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Position of each label among this rank's classes, -1 if it is another rank's."""
    target = labels - start
    return target.where((target >= 0) & (target < count), -1)


def classes_to_rank0(rows: torch.Tensor, num_classes: int) -> torch.Tensor | None:
    """This rank's rows (n, ...) -> all classes' (C, ...), in class order, on rank 0's CPU.

    Every rank has to call it; the others get None.
    """
    out = None
    if rank() == 0:
        out = torch.empty(num_classes, *rows.shape[1:], dtype=rows.dtype)
        out[: len(rows)] = rows
    for source in range(1, world_size()):
        start, count = contiguous_share(num_classes, source, world_size())
        if rank() == source:
            dist.send(rows.contiguous(), 0)
        elif rank() == 0:
            piece = rows.new_empty(count, *rows.shape[1:])
            dist.recv(piece, source)
            out[start : start + count] = piece
    return out


def own_classes(rows: torch.Tensor, num_classes: int) -> torch.Tensor:
    """All classes' rows (C, ...) -> this rank's (n, ...)."""
    if len(rows) != num_classes:
        raise BctError(
            f"the checkpoint has {len(rows)} classes, the data {num_classes}",
            "resume with the data set the run was started with",
        )
    start, count = class_share(num_classes)
    return rows[start : start + count]


class PartialFC(nn.Module):
    """Margin softmax whose class centres are cut over the ranks.

    Rank r holds a contiguous run of classes. Embeddings and labels are gathered, every rank scores
    all of them against its own centres, and two small collectives join the softmax.
    Source: An et al., Killing Two Birds with One Stone, CVPR 2022.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        margin: (m1, m2, m3), see margin_logit.
        scale: s, the logits are s * cosine.
        sample_rate: share of a rank's centres used per step. The centres of the batch's classes are
            always among them, the rest is drawn anew in every step.
        filter_above: negatives with a larger cosine count as cosine 0 without gradient (0: off).
        block: most logits held at once, over the global batch and this rank's classes; where there
            are more, they are computed a second time for the gradient.
        seed: of the centres, N(0, 0.01^2). They depend on the class alone, not on the ranks.

    Attributes:
        weight: Parameter (n, D), this rank's centres. With row_sgd each row is as old as its last
            use: `current` has them all as they are now.
        start: first class of this rank.
        sampled: the classes used in the last step (global, ascending), when sample_rate < 1.
        row_sgd: the optimiser, if it is to move the sampled rows only; set by make_optimizer. None:
            the gradient is dense, as other optimisers need it.

    Deviations from insightface's PartialFC v2: the gradient of the margin is exact, centres differ
    between ranks, the loss is not capped at 69.08, and |cos| = 1 has a finite gradient.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        margin: tuple[float, float, float] = (1.0, 0.5, 0.0),
        scale: float = 64.0,
        sample_rate: float = 1.0,
        filter_above: float = 0.0,
        block: int = BLOCK,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise BctError(f"sample_rate = {sample_rate}", "give a value above 0, at most 1")
        if block < 1:
            raise BctError(f"block = {block}", "give the number of logits to hold, at least 1")
        self.num_classes, self.margin, self.scale = num_classes, tuple(margin), scale
        self.sample_rate, self.filter_above, self.block = sample_rate, filter_above, block
        self.start, count = class_share(num_classes)
        self.weight = nn.Parameter(torch.empty(count, embedding_size))
        self.sampled, self.row_sgd = None, None
        stop = self.start + count
        for block in range(self.start // _INIT_BLOCK, -(-stop // _INIT_BLOCK)):
            rng = generator("cpu", seed, "centres", block)
            first = block * _INIT_BLOCK
            centres = torch.empty(_INIT_BLOCK, embedding_size).normal_(0, 0.01, generator=rng)
            lo, hi = max(first, self.start), min(first + _INIT_BLOCK, stop)
            self.weight.data[lo - self.start : hi - self.start] = centres[lo - first : hi - first]

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, rng: torch.Generator | None = None
    ) -> torch.Tensor:
        """Mean loss over the global batch, the same on all ranks.

        Args:
            embeddings: (B, D), this rank's; B is the same on all ranks.
            labels: (B,) int64, global classes.
            rng: this rank's stream for the negatives, needed when sample_rate < 1.
        """
        e = gather_rows(F.normalize(embeddings.float()))  # (N, D)
        target = own_columns(all_gather(labels), self.start, len(self.weight))  # (N,)
        weight = self.weight
        if self.sample_rate < 1:
            mine = target >= 0
            used = self._sample(target[mine], rng)
            self.sampled = used + self.start
            weight = self.current(used)
            target = torch.searchsorted(used, target).where(mine, -1)
        return _ShardedMarginSoftmax.apply(
            e, weight, target, self.margin, self.scale, self.filter_above, self.block
        )

    def current(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """These rows (k,) of the centres, or all, as they are now: (k, D), with gradients."""
        if self.row_sgd is not None:
            return self.row_sgd.current(self.weight, rows)
        return self.weight if rows is None else self.weight.index_select(0, rows)

    def cosines(self, e: torch.Tensor) -> torch.Tensor:
        """Of unit rows (N, D) with this rank's centres: (N, n), with gradients."""
        return e @ F.normalize(self.current()).t()

    @torch.no_grad()
    def logits(self, e: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of unit rows (N, D): scaled cosines (N, n), those of the labels (N,) with the margin."""
        cosines = self.cosines(e)
        target = own_columns(labels, self.start, len(self.weight))
        rows = torch.nonzero(target >= 0).squeeze(1)
        cosines[rows, target[rows]] = margin_logit(cosines[rows, target[rows]], *self.margin)[0]
        return cosines * self.scale

    def to_global(self, rows: torch.Tensor) -> torch.Tensor | None:
        return classes_to_rank0(rows, self.num_classes)

    def to_local(self, rows: torch.Tensor) -> torch.Tensor:
        return own_classes(rows, self.num_classes)

    def _sample(self, positives: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Ascending local indices: all positives, filled up with random negatives."""
        priority = torch.rand(len(self.weight), generator=rng, device=self.weight.device)
        priority[positives] = 2.0
        count = max(int(self.sample_rate * len(self.weight)), int((priority == 2).sum()), 1)
        return priority.topk(count, sorted=False).indices.sort().values


class SoftmaxHead(nn.Linear):
    """Cross-entropy of a linear layer, without margin.

    The head of "softmax" old models: logits = W f + b on the raw embedding (MixBCT reference), or
    with unit on f / |f| (BT-2).
    Returns the mean over this rank's batch; DDP averages over ranks, each of which holds all rows.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        bias: bool = True,
        smoothing: float = 0.0,
        unit: bool = False,
    ):
        super().__init__(dim, num_classes, bias)
        self.smoothing, self.unit = smoothing, unit

    def to_global(self, rows: torch.Tensor) -> torch.Tensor | None:
        return rows.cpu() if rank() == 0 else None

    def to_local(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, rng: torch.Generator | None = None
    ) -> torch.Tensor:
        embeddings = embeddings.float()
        logits = super().forward(F.normalize(embeddings) if self.unit else embeddings)
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


class NoHead(nn.Module):
    """The head of a method that classifies nothing."""

    def to_global(self, rows: torch.Tensor) -> torch.Tensor | None:
        return rows.cpu() if rank() == 0 else None

    def to_local(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, rng: object = None) -> None:
        raise BctError(
            'this method has a classification term, and the config says head="none"',
            'set head="softmax" or head="margin"',
        )
