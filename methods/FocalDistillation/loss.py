"""Focal distillation: the new embedding is the old one, above all where the model is right.

    mean_i (alpha + beta r_i) mean_d (f_id - o_id)^2

f_i is the new embedding of image i as it is, not normalised, o_i the old one, a constant; d runs
over the coordinates. r_i is 1 where the gate names the class of image i, else 0. The gate is the
old model: what it knows has to be kept. The training adds a classification loss to it.

Paper: Yan et al., Positive-Congruent Training, CVPR 2021; as a loss between embeddings in the code
of Zhang et al., Hot-Refresh Model Upgrades, ICLR 2022.
Differs from the published code: there the gate is the new classifier's word on f_i, so that an
image is held the more to its old embedding the better the new model knows it without; parity =
"published" does that.
"""

import torch

from bct.distributed import mean_of_chosen


def focal_distillation(
    embeddings: torch.Tensor,
    old: torch.Tensor,
    right: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 5.0,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch.

    Args:
        embeddings: float32 (B, D), new; old: (B, D), of the same images; right: bool (B,), r.
        present: bool (B,), which old ones there are; the mean is over them. None: all.
    """
    each = (alpha + beta * right) * (embeddings - old).square().mean(1)  # (B,)
    return each.mean() if present is None else mean_of_chosen(each, present)
