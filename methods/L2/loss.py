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

from bct.distributed import mean_of_chosen


def l2(
    embeddings: torch.Tensor,
    old: torch.Tensor,
    threshold: float = 0.0,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch.

    Args:
        embeddings: float32 (B, D), new; old: (B, D), of the same images.
        present: bool (B,), which old ones there are; the mean is over them. None: all.
    """
    distance = torch.linalg.vector_norm(F.normalize(old) - F.normalize(embeddings), dim=1)  # (B,)
    each = F.relu(distance - threshold)
    return each.mean() if present is None else mean_of_chosen(each, present)
