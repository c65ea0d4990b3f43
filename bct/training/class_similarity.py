"""Class probabilities and their scalar products with stored ones, the classes cut over ranks as
PartialFC cuts its centres."""

import torch
import torch.distributed as dist

from bct.amp import has_bf16
from bct.distributed import all_gather, all_reduce, reduce_scatter, world_size

_PIECE = 2**24  # values of a queue that are converted at once


class _ClassSimilarity(torch.autograd.Function):
    """b_ij = sum over all ranks' classes of softmax(z)_ic q_cj, each rank getting its own rows.

    Only this rank's columns of z and rows of q exist here. With G = dL/db of the global loss,

        g_ic = sum_j G_ij q_cj,      dL/dz_ic = p_ic (g_ic - sum over all classes d of p_id g_id)
    """

    @staticmethod
    def forward(ctx, z, q):
        # z (N, n), q (n, Q) constant -> (B, Q)
        p = class_probabilities(z)
        ctx.save_for_backward(p, q)
        return reduce_scatter(_product(p, q).to(z.dtype))

    @staticmethod
    def backward(ctx, grad):
        p, q = ctx.saved_tensors
        grad = all_gather(grad / world_size())  # DDP takes the mean of the ranks' losses
        g = _product(grad, q.t()).to(p.dtype)
        # from the rounded g: where p is nearly one-hot the two all but cancel
        radial = all_reduce(torch.linalg.vecdot(p, g))  # (N,)
        return p * (g - radial[:, None]), None


def _product(a: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """a (N, n), rounded to q's type, times q (n, Q): (N, Q), also in that type."""
    a = a.to(q.dtype)
    if q.dtype != torch.bfloat16 or has_bf16(q.device):
        return a @ q
    # emulated products take many times as long; q is large, so it is converted piece by piece
    pieces = q.split(max(_PIECE // len(q), 1), dim=1)
    return torch.cat([(a.float() @ piece.float()).to(q.dtype) for piece in pieces], 1)


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over all ranks' classes of this rank's columns (N, n). No gradient."""
    top = all_reduce(logits.amax(1), dist.ReduceOp.MAX)
    p = (logits - top[:, None]).exp_()
    return p.div_(all_reduce(p.sum(1))[:, None])


def class_similarity(logits: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    """Scalar products of class probabilities with stored ones, the classes cut over ranks.

    Args:
        logits: (N, n), the gathered batch against this rank's classes.
        queue: (n, Q), stored probabilities of this rank's classes; no gradient.

    Returns:
        (B, Q), this rank's rows. Its gradient fits a loss that each rank averages over its own
        rows, when the logits come from `gather_rows` and PartialFC's centres.
    """
    return _ClassSimilarity.apply(logits, queue)
