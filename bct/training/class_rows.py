"""Rows of the new classifier for a loss of its own, whether each rank holds all of them or, as
PartialFC does, those of its classes."""

import torch

from bct.distributed import all_gather, joined_parts, world_size
from bct.training.class_shards import own_columns
from bct.training.heads import PartialFC, SoftmaxHead

Head = PartialFC | SoftmaxHead


def rows_of_labels(
    head: Head, labels: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows (k, D) that this rank answers for, with gradients, their classes (k,) and what
    weight falls on each, (k,).

    The sum over them of weight times anything, joined by `over_ranks`, has as mean over ranks the
    sum over all images of their weight times that of their class.

    Args:
        labels: int64 (B,), of this rank's images; weight: (B,).
    """
    if not isinstance(head, PartialFC):
        return head.weight[labels], labels, weight * world_size()
    own = own_columns(all_gather(labels), head.start, len(head.weight))
    weight, own = all_gather(weight)[own >= 0], own[own >= 0]
    rows, place = own.unique(return_inverse=True)
    weights = weight.new_zeros(len(rows)).index_add_(0, place, weight)
    return head.current(rows), rows + head.start, weights


def all_rows(head: Head) -> tuple[torch.Tensor, slice]:
    """All rows (n, D) that this rank holds, with gradients, and which classes' they are."""
    if not isinstance(head, PartialFC):
        return head.weight, slice(None)
    return head.current(), slice(head.start, head.start + len(head.weight))


def over_ranks(head: Head, part: torch.Tensor) -> torch.Tensor:
    """A scalar made of this rank's rows -> what to add to the loss: where rows are cut over ranks
    the sum of all ranks' parts, with the gradient by this rank's, of which no mean is taken."""
    return joined_parts(part) if isinstance(head, PartialFC) else part
