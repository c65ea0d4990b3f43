"""BCT's influence: the old classifier judges the new embeddings, too.

    prototype_influence    mean_i -log softmax_y( s cos(f_i, p_c) )
    published_influence    mean_i -log softmax_y( n(f_i) . p_c ),           n(v) = v / |v|
    classifier_influence   mean_i -log softmax_z( V f_i + b )  over the images of old classes

f is the new embedding, y its class, p_c the normalised mean of class c's old embeddings, V and b
the old model's own classifier, in which class y has the label z; the old parts are constants. The
training adds a classification loss to it.

Paper: Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, sec. 3.
Differs from the published code:
- the prototypes' logits have a scale and an optional margin; published, they are bare cosines, and
  over 65,402 classes the loss can only move between 11.09 and 10.09;
- the prototypes are cut over the ranks like PartialFC's centres instead of held whole by each.
"""

import torch
import torch.nn.functional as F

from bct.distributed import mean_of_chosen
from bct.training.margin_softmax import prototype_softmax


def prototype_influence(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    prototypes: torch.Tensor,
    margin: tuple[float, float, float] = (1.0, 0.0, 0.0),
    scale: float = 64.0,
    start: int = 0,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch; 0 without labelled rows.

    Args:
        embeddings: float32 (B, D), new; labels: int64 (B,), -1 leaves a row out.
        prototypes: float32 (C, D); on several ranks (n, D), this rank's share of the classes, the
            first of which is `start`.
        margin: of the target's logit, see bct.training.margin_softmax; (1, 0, 0) is none.
        scale: s.
    """
    return prototype_softmax(embeddings, labels, prototypes, start, margin, scale)


def published_influence(
    embeddings: torch.Tensor, labels: torch.Tensor, prototypes: torch.Tensor
) -> torch.Tensor:
    """The loss of float32 embeddings (B, D), labels (B,) and all prototypes (C, D)."""
    return F.cross_entropy(F.normalize(embeddings) @ prototypes.t(), labels)


def classifier_influence(
    embeddings: torch.Tensor,
    old_labels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch; 0 without old classes.

    Args:
        embeddings: float32 (B, D), new, of unit length if the old classifier was trained on such.
        old_labels: int64 (B,), the old classifier's label of each image's class, -1: none.
        weight: V (K, D); bias: b (K,) or None.
    """
    known = old_labels >= 0
    logits = F.linear(embeddings, weight, bias)  # (B, K)
    each = F.cross_entropy(logits, old_labels.where(known, 0), reduction="none")
    return mean_of_chosen(each, known)
