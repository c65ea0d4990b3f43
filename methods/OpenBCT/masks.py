"""Which old embeddings are an image's positives and negatives, in triplet.py and contrastive.py."""

import torch
import torch.nn.functional as F


def masks(
    labels: torch.Tensor,
    everyone: torch.Tensor | None = None,
    first: int = 0,
    positives: str = "class",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(other, positive), bool (B, N): the images of other classes, and those to be near to.

    Args:
        labels: int64 (B,), of the new embeddings.
        everyone: int64 (N,), of the old embeddings; None: the same images, N = B.
        first: the row of `everyone` that the first new embedding's own image is in.
        positives: "class", all images of the class; "self", the image itself.
    """
    everyone = labels if everyone is None else everyone
    same = labels[:, None] == everyone
    if positives == "self":
        own = first + torch.arange(len(labels), device=labels.device)
        return ~same, F.one_hot(own, len(everyone)).bool()
    return ~same, same
