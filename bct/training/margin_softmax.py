"""Softmax with an angular margin over classes that are cut over the ranks, in blocks of classes."""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from bct.distributed import all_gather, all_reduce, gather_rows
from bct.training.class_shards import own_columns

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


class ShardedMarginSoftmax(torch.autograd.Function):
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
    return ShardedMarginSoftmax.apply(e, prototypes, target, tuple(margin), scale, 0.0, BLOCK)
