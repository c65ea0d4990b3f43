"""FCT and FastFill: stored old embeddings, mapped by h, lie where the new model's embeddings lie.

    loss     = mean_i (e_i + w ce_i)                                                FCT: w = 0
             = mean_i (exp(-s_i) (e_i + w ce_i) + s_i) / 2         uncertainty      FastFill: w = 1
    e_i      = |f_i - h_i|^2 / d_n, or with unit |n(f_i) - n(h_i)|^2,  n(v) = v / |v|
    ce_i     = -log softmax_y( V h_i + b ), smoothed by label_smoothing
    h_i, s_i = h(o_i, z_i)

o_i is the stored old embedding of an image, z_i its side information, f_i the embedding of the new
model, which was trained alone, V and b that model's own classifier: all are constants. h is
backbones/fct.py. s_i is the predicted log-variance of the error; backfilling begins where it is
largest.

Papers: Ramanujan et al., Forward Compatible Training, CVPR 2022, arXiv 2112.02805; Jaeckle et al.,
FastFill, ICLR 2023.
"""

import torch
import torch.nn.functional as F


def fct(
    mapped: torch.Tensor,
    new: torch.Tensor,
    log_variance: torch.Tensor | None = None,
    unit: bool = False,
    labels: torch.Tensor | None = None,
    classifier: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    weight: float = 1.0,
    label_smoothing: float = 0.0,
    unit_classifier: bool = False,
) -> dict[str, torch.Tensor]:
    """The terms, whose sum is the loss: error, with a classifier cls, with a log_variance variance.

    Args:
        mapped: h, float32 (B, d_n); new: f, (B, d_n), of the same images.
        log_variance: s (B,); None: FCT.
        unit: compare directions.
        labels: int64 (B,), for the classifier: the new model's V (C, d_n) and b (C,) or None.
        weight: w.
        unit_classifier: V is of embeddings of length 1, n(h).
    """
    if unit:
        error = (F.normalize(new) - F.normalize(mapped)).square().sum(1)  # (B,)
    else:
        error = (new - mapped).square().mean(1)
    terms = {"error": error}
    if classifier is not None:
        seen = F.normalize(mapped) if unit_classifier else mapped
        logits, smoothing = F.linear(seen, *classifier), label_smoothing
        ce = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        terms["cls"] = weight * ce
    if log_variance is not None:
        terms = {name: torch.exp(-log_variance) * each / 2 for name, each in terms.items()}
        terms["variance"] = log_variance / 2
    return {name: each.mean() for name, each in terms.items()}
