"""What the new classifier says for all classes but an image's own, the classes cut over ranks as
PartialFC cuts its centres."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from bct.distributed import all_gather, all_reduce, gather_rows, rank, reduce_scatter, world_size
from bct.training.class_shards import own_columns
from bct.training.heads import PartialFC, SoftmaxHead

_NEVER = -1e9  # a finite logit, so that a rank may have no class but the image's own


class _OwnRows(torch.autograd.Function):
    """Sum over ranks of (N, ...), each rank getting its own rows; the gradient is that of a loss
    which each rank averages over these, when what is summed comes from gather_rows."""

    @staticmethod
    def forward(ctx, parts: torch.Tensor) -> torch.Tensor:
        return reduce_scatter(parts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return all_gather(grad / world_size())  # DDP takes the mean of the ranks' losses


def others(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log of the sum of e^z over all classes but a row's own: logits (B, C), labels (B,) -> (B,).

    A label that is none of the columns leaves nothing out.
    """
    return _without(logits, labels).logsumexp(1)


def others_of(
    head: PartialFC | SoftmaxHead, embeddings: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The same of a head's logits, of embeddings (B, D) and labels (B,) of this rank: (B,).

    A margin head's logits are s cos, without a margin, and all of its centres take part; its filter
    is not applied. The gradient reaches embeddings and head, and fits a loss that each rank
    averages over its own rows.
    """
    if not isinstance(head, PartialFC):
        return others(head.scores(embeddings), labels)
    e, everyone = gather_rows(F.normalize(embeddings.float())), all_gather(labels)
    z = head.scale * head.cosines(e)  # (N, n)
    own = own_columns(everyone, head.start, z.shape[1])
    if world_size() == 1:
        return others(z, own)
    z = _without(z, own)
    top = all_reduce(z.detach().amax(1), dist.ReduceOp.MAX)  # (N,)
    total = _OwnRows.apply((z - top[:, None]).exp().sum(1))  # (B,)
    mine = slice(rank() * len(labels), (rank() + 1) * len(labels))
    return total.log() + top[mine]


def _without(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    columns = torch.arange(logits.shape[1], device=logits.device)
    return logits.masked_fill(own[:, None] == columns, _NEVER)
