"""BT²: an embedding with extra coordinates, turned so that its first ones are an old embedding's.

    new       = mean_i (1 - <n(t_i), f_i>)
    old       = mean_i (1 - <n(o_i), n(c_i)>)
    influence = -mean_i log softmax_y( s <n(c_i), p_k> ),            n(v) = v / |v|

f_i, of unit length, and c_i are the new embedding of an image and its compatible coordinates, see
backbones/basis.py. o_i is the old model's embedding of the same image, t_i that of a new model
trained alone, p_k the normalised mean of class k's old embeddings; all are constants. The training
adds a classification loss of f to it.

Paper: Zhou et al., BT²: Backward-compatible Training with Basis Transformation, ICCV 2023.
Differs from the published code, where p_k is the plain mean of class k's unit embeddings and s = 1:
over 1000 classes the influence can only move between 6.91 and 5.91, and it is 10 of the 11 parts of
classification. Teachers are normalised in both; published, the old one of a second step has length
sqrt(1 + C^2).
"""

import torch
import torch.nn.functional as F


def bt2(
    new: torch.Tensor,
    compatible: torch.Tensor,
    labels: torch.Tensor,
    old_teacher: torch.Tensor,
    new_teacher: torch.Tensor,
    prototypes: torch.Tensor,
    scale: float = 16.0,
) -> dict[str, torch.Tensor]:
    """The terms new, old and influence, without their weights.

    Args:
        new: f (B, d), unit rows; compatible: c (B, d_old); labels: int64 (B,).
        old_teacher: o (B, d_old); new_teacher: t (B, d); prototypes: p (C, d_old).
        scale: s.
    """
    compatible, old_teacher = F.normalize(compatible), F.normalize(old_teacher)
    logits = scale * compatible @ prototypes.t()  # (B, C)
    return {
        "new": 1 - (F.normalize(new_teacher) * new).sum(1).mean(),
        "old": 1 - (old_teacher * compatible).sum(1).mean(),
        "influence": F.cross_entropy(logits, labels),
    }
