"""The new embedding lies where the old one of the same image lies.

    corrected   mean_i |n(c_i) - n(o_i)|^2                                    n(v) = v / |v|
    published   mean over i and the w coordinates of (n(f_i[:w]) - n(o_i)[:w])^2,  w = min(d_n, d_o)

c_i is the new embedding f_i brought to the old width d_o. The published mean over coordinates makes
the gradient d_o times smaller at the same rate, and it cuts a longer old embedding short where all
else pads the new one with zeros.

Paper: a baseline of Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020.
"""

import torch
import torch.nn.functional as F


def corrected(features: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The loss of float32 features (B, d_o), new, and old (B, d_o), constant."""
    return (F.normalize(features) - F.normalize(old)).square().sum(1).mean()


def published(embeddings: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The loss of float32 embeddings (B, d_n), of any width, and old (B, d_o)."""
    width = min(embeddings.shape[1], old.shape[1])
    new = F.normalize(embeddings[:, :width])
    return F.mse_loss(new, F.normalize(old)[:, :width])
