"""A new embedding is nearer to old embeddings of its class than to the nearest of another class.

    corrected   mean_i mean_{p in P_i} max( |a_i - n(o_p)| - |a_i - n(o_h)| + margin, 0 )
                a_i = n(c_i),   h: of all ranks' images of other classes, that with n(o_h) nearest
                P_i = {i} ("self"), or all images of class y_i ("class")
    published   P_i = {i},  a_i = c_i,  h: h's number among this rank's images of other classes is
                taken for its number in the batch

c_i is the new embedding of image i brought to the old width, o_j the old one of image j. The
published negative is the wrong image more often than not, and may be of the anchor's class. An
image without any negative is left out; published, it ends the training.

Paper: a baseline of openBCT.
"""

import torch
import torch.nn.functional as F

from bct.distributed import mean_of_chosen


def hardest(anchors: torch.Tensor, old: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Number of the nearest old embedding of another class, int64 (B,); any where there is none.

    Args:
        anchors: float32 (B, d_o); old: (N, d_o), of unit length, so that the nearest has the
            largest product; other: bool (B, N), see corrected.
    """
    with torch.no_grad():
        return (anchors @ old.t()).masked_fill(~other, -torch.inf).argmax(1)


def corrected(
    features: torch.Tensor,
    old: torch.Tensor,
    other: torch.Tensor,
    positive: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch.

    Args:
        features: float32 (B, d_o), new; old: (N, d_o), constant.
        other, positive: bool (B, N), see masks.py; at least one positive in each row.
    """
    anchors, old = F.normalize(features), F.normalize(old)
    far = torch.linalg.vector_norm(anchors - old[hardest(anchors, old, other)], dim=1)  # (B,)
    i, p = positive.nonzero(as_tuple=True)
    near = torch.linalg.vector_norm(anchors[i] - old[p], dim=1)
    share = F.relu(near - far[i] + margin) / positive.sum(1)[i]
    return mean_of_chosen(torch.zeros_like(far).index_add(0, i, share), other.any(1))


def published(
    features: torch.Tensor,
    old: torch.Tensor,
    other: torch.Tensor,
    positive: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Like corrected, N = B being this rank's batch and positive the image itself."""
    old = F.normalize(old)
    number = (other.cumsum(1) - 1).clamp_min(0)  # among those of other classes
    wrong = number.gather(1, hardest(features, old, other)[:, None]).squeeze(1)
    near = old[positive.int().argmax(1)]
    each = F.triplet_margin_loss(features, near, old[wrong], margin, reduction="none")
    return mean_of_chosen(each, other.any(1))
