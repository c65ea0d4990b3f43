"""BCT-RACT: the old classifier judges new embeddings, and new classes are among its negatives.

    mean_i -log( e^{z_y} / (Z_i + W_i) )
    Z_i = sum over old classes c of e^{z_c},   W_i = sum over new classes c other than y of e^{w_c}

    z   the old classifier's logits of the new embedding f_i, or s cos with class means of old
        embeddings; a constant classifier
    w   the new classifier's logits of f_i, those that the classification has, without a margin

y is the image's class, in z by its old label. The gradient reaches f_i and the new classifier. The
mean is over the images of classes that the old classifier knows. The training adds a classification
loss to it.

Paper: Zhang et al., Hot-Refresh Model Upgrades with Regression-Free Compatible Training in Image
Retrieval, ICLR 2022, where BCT gets the negatives of the new model, too.
Differs from the published code:
- images of classes that the old classifier does not know are left out; published, it has to have a
  row for every class, though some were never anything but negatives;
- where the old model has no classifier, class means of its embeddings stand in for it.
With a margin head the published code has two scales in one softmax: w = s cos, and z as it is. So
has this one; class means give z a scale, too.
"""

import torch

from bct.distributed import mean_of_chosen


def bct_ract(
    old_logits: torch.Tensor, old_labels: torch.Tensor, others: torch.Tensor
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch; 0 without old classes.

    Args:
        old_logits: z float32 (B, K); old_labels: int64 (B,), each image's class in z, -1: none.
        others: (B,), log of the sum of e^{w_c} over the new classes but the image's own, see
            bct.training.other_classes.
    """
    known = old_labels >= 0
    right = old_logits.gather(1, old_labels.where(known, 0)[:, None]).squeeze(1)
    each = torch.logaddexp(old_logits.logsumexp(1), others) - right
    return mean_of_chosen(each, known)
