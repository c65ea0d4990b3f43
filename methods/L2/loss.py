"""L2 and weakened L2: the new embedding of an image stays near its old one.

    loss = mean_i max(|n(o_i) - n(f_i)| - threshold, 0),        n(v) = v / |v|

f_i is the new embedding, o_i the old one of the same image, a constant. threshold = 0 is L2, 0.2
the weakened L2, which leaves the new embedding free within a ball. The training adds a
classification loss to it.

Paper: a baseline of Liang et al., MixBCT, arXiv 2308.06948.
Differs from the published code in nothing but that it starts: parity = "published" is the same.
"""

import torch
import torch.nn.functional as F


def l2(embeddings: torch.Tensor, old: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The loss of float32 embeddings (B, D), new, and old (B, D), of the same images."""
    distance = torch.linalg.vector_norm(F.normalize(old) - F.normalize(embeddings), dim=1)  # (B,)
    return F.relu(distance - threshold).mean()
