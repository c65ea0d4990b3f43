"""How often a head names the right class, on images it was not trained on."""

import torch
import torch.nn.functional as F

from bct.distributed import all_gather, all_reduce, contiguous_share, rank, world_size
from bct.training.class_shards import own_columns
from bct.training.heads import PartialFC, SoftmaxHead

_SCORES = 1 << 24  # held at once: 64 MiB


@torch.no_grad()
def top_shares(
    head: PartialFC | SoftmaxHead,
    rows: torch.Tensor,
    labels: torch.Tensor,
    total: int,
    ks: tuple[int, ...] = (1, 5),
) -> dict[int, float]:
    """Share of the rows whose class is among the head's best k, per k, the same on all ranks.

    No margin is taken off. A class of the same score comes before the right one. Every rank has to
    call it; classes that are cut over the ranks stay there, and what travels are the rows.

    Args:
        rows: float32 (n, D), what the head classifies of this rank's contiguous share of `total`
            images, on the head's device.
        labels: int64 (n,), classes of the training set; -1: it has no such class, or it is not
            known, and the row is left out.
    """
    cut = isinstance(head, PartialFC)
    classes = head.weight.shape[0]
    most = contiguous_share(total, 0, world_size())[1]  # the longest share: all take its steps
    step = max(1, _SCORES // (max(classes, 1) * (world_size() if cut else 1)))
    counts = torch.zeros(1 + len(ks), dtype=torch.int64, device=rows.device)
    for first in range(0, most, step):
        e, wanted = rows[first : first + step], labels[first : first + step]
        if cut:
            size = min(step, most - first)
            e = all_gather(_filled(F.normalize(e), size, 0.0))
            wanted = all_gather(_filled(wanted, size, -1))
        place = _ranks(head, e, wanted, cut)
        counts += torch.stack(
            [(wanted >= 0).sum(), *(((place > 0) & (place <= k)).sum() for k in ks)]
        )
    if not cut:
        all_reduce(counts)
    known, *found = counts.tolist()
    return {k: number / known for k, number in zip(ks, found, strict=True)}


@torch.no_grad()
def names_the_class(
    head: PartialFC | SoftmaxHead, rows: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Whether the head's best class is the right one, bool (B,), of what it classifies (B, D).

    Every rank has to call it, with as many rows.
    """
    if not isinstance(head, PartialFC):
        return _ranks(head, rows, labels, False) == 1
    e, everyone = all_gather(F.normalize(rows.float())), all_gather(labels)
    mine = slice(rank() * len(labels), (rank() + 1) * len(labels))
    return _ranks(head, e, everyone, True)[mine] == 1


def _ranks(
    head: PartialFC | SoftmaxHead, e: torch.Tensor, labels: torch.Tensor, cut: bool
) -> torch.Tensor:
    """Rank of each row's class among all, from 1, int64 (B,); 0 for a label of -1."""
    scores = head.cosines(e) if cut else head.scores(e)  # (B, n)
    own = own_columns(labels, head.start, len(head.weight)) if cut else labels
    mine = own >= 0
    wanted = scores.new_zeros(len(e))
    wanted[mine] = scores[mine, own[mine]]
    wanted = all_reduce(wanted) if cut else wanted
    # not "as high as": what is not a number counts against the row
    before = (~(scores < wanted[:, None])).sum(1) - mine.long()
    before = all_reduce(before) if cut else before
    return torch.where(labels >= 0, before + 1, 0)


def _filled(local: torch.Tensor, size: int, value: float) -> torch.Tensor:
    out = local.new_full((size, *local.shape[1:]), value)
    out[: len(local)] = local
    return out
