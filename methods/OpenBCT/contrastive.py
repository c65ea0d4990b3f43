"""A new embedding picks old embeddings of its class out of those of other classes.

    corrected   mean_i mean_{p in P_i} -log( e^{s_ip} / (e^{s_ip} + sum_{j: y_j != y_i} e^{s_ij}) )
                s_ij = n(c_i) . n(o_j) / t,  j in all ranks' images,   n(v) = v / |v|
                P_i = {i} ("self"), or all images of class y_i ("class")
    published   j in this rank's images, and of P_i the first only is a positive; the rest of P_i
                are negatives like those of other classes

c_i is the new embedding of image i brought to the old width, o_j the old one of image j. The
published table's row is "self" without cls, where the two agree.

Papers: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020; a baseline of openBCT.
"""

import torch
import torch.nn.functional as F


def similarities(features: torch.Tensor, old: torch.Tensor, temperature: float) -> torch.Tensor:
    """s (B, N) of float32 features (B, d_o) and old (N, d_o)."""
    return F.normalize(features) @ F.normalize(old).t() / temperature


def corrected(
    features: torch.Tensor,
    old: torch.Tensor,
    other: torch.Tensor,
    positive: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The loss, a mean over this rank's images; that of one without negatives is 0.

    Args:
        features: float32 (B, d_o), new; old: (N, d_o), constant.
        other, positive: bool (B, N), see masks.py; at least one positive in each row.
    """
    s = similarities(features, old, temperature)
    negatives = s.masked_fill(~other, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
    each = F.softplus(negatives - s).where(positive, 0)
    return (each.sum(1) / positive.sum(1)).mean()


def published(
    features: torch.Tensor,
    old: torch.Tensor,
    other: torch.Tensor,
    positive: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Like corrected, N = B being this rank's batch."""
    s = similarities(features, old, temperature).masked_fill(~(other | positive), -torch.inf)
    return F.cross_entropy(s, positive.int().argmax(1))
