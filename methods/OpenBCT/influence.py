"""The old classifier's judgement of new embeddings.

    raw      z_i = V c_i + b                              the classifier as it was trained, which
                                                          may be on n(c_i) for c_i (head_unit)
    cosine   z_i = s n(V) n(c_i),   n(v) = v / |v|        its rows as directions, without b
    influence = mean_i -log softmax(z_i) at i's old label

c_i is the new embedding of image i brought to the old width. The mean is over those images of all
ranks that have an old label, and 0 if there are none; published, over each rank's own.

Paper: Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, sec. 3.
"""

import torch
import torch.nn.functional as F

from bct.distributed import mean_of_chosen


def old_logits(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mode: str = "raw",
    scale: float = 16.0,
) -> torch.Tensor:
    """z (B, K) of float32 features (B, d_o), new or old.

    Args:
        weight: float32 V (K, d_o); bias: b (K,) or None.
        mode: "raw" or "cosine"; scale: s of the latter.
    """
    if mode == "cosine":
        return scale * F.normalize(features) @ F.normalize(weight).t()
    return F.linear(features, weight, bias)


def influence(logits: torch.Tensor, old_labels: torch.Tensor) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch.

    Args:
        logits: float32 (B, K); old_labels: int64 (B,), a row of the classifier, -1: none.
    """
    known = old_labels >= 0
    each = F.cross_entropy(logits, old_labels.where(known, 0), reduction="none")
    return mean_of_chosen(each, known)
