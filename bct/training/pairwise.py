"""New embeddings beside their own old ones and beside other classes', old and new, of all ranks."""

import torch

from bct.distributed import all_gather, mean_of_chosen, share_rows
from bct.errors import BctError


def compared(
    new: torch.Tensor,
    old: torch.Tensor,
    labels: torch.Tensor,
    topk: int,
    with_new: bool,
    published: bool = False,
    present: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Each image's cosine with its own old embedding, (B,), and the largest with old ones of other
    classes, (B, K); with_new: and with new ones.

    Args:
        new, old: unit rows (B, D), of the same images; labels: int64 (B,).
        topk: K; 0 or less: all.
        published: other images' new embeddings have no gradient.
        present: bool (B,), which old embeddings there are. None: all.
    """
    everyone = all_gather(new.detach()) if published else share_rows(new)  # (N, D)
    other = labels[:, None] != all_gather(labels)  # (B, N)
    of_old = other if present is None else other & all_gather(present)
    families = [nearest(new @ all_gather(old).t(), of_old, topk, published)]
    if with_new:
        families.append(nearest(new @ everyone.t(), other, topk, published))
    return (new * old).sum(1), families


def nearest(cosines: torch.Tensor, other: torch.Tensor, topk: int, published: bool) -> torch.Tensor:
    """The topk largest of each row of cosines (B, N) where `other`, bool (B, N): (B, K), filled up
    with -inf."""
    cosines = cosines.masked_fill(~other, -torch.inf)
    if published:
        refuse_few(topk, cosines.shape[1])
    return cosines if topk <= 0 else cosines.topk(min(topk, cosines.shape[1])).values


def refuse_few(topk: int, images: int) -> None:
    """Raises BctError where a batch of so many images, of all ranks, is too small for the published
    code to take topk of them."""
    if topk > images:
        raise BctError(
            f"topk = {topk}, and the batch of all ranks has {images} images",
            'give a larger batch_size, a smaller topk or parity="corrected"',
        )


def contrast(
    own: torch.Tensor,
    families: list[torch.Tensor],
    temperature: float,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """How surely cosines own (B,) win against those of each family (B, K)."""
    logits = torch.cat([own[:, None], *families], 1) / temperature
    each = logits.logsumexp(1) - logits[:, 0]
    return each.mean() if present is None else mean_of_chosen(each, present)
