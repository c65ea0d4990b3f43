"""Hot refresh: a new embedding is nearer to its own old one than to other classes', old and new.

    c_ij = n(f_i) . n(o_j),   e_ij = n(f_i) . n(f_j),   n(v) = v / |v|,   d(c) = sqrt(2 - 2 c)
    O_i, N_i = the K largest c_ij, and the K largest e_ij, over images j of other classes

    contra        mean_i -log( e^{c_ii / t} / (e^{c_ii / t} + sum_{c in O_i} e^{c / t}) )
    contra_ract   the same, and the sum over e in N_i of e^{e / t} joins the denominator (RACT)
    triplet       mean over i and c in O_i of max( d(c_ii) - d(c) + margin, 0 )
    triplet_ract  that + mean over i and e in N_i of max( d(c_ii) - d(e) + margin, 0 )

f_i is the new embedding of image i, o_i the old one, a constant; j runs over the images of all
ranks. The negatives N_i are what RACT adds: they are of the new model, like those that a gallery
holds while it is being refreshed. Images of the anchor's class are neither positives nor negatives.
The training adds a classification loss to it.

Paper: Zhang et al., Hot-Refresh Model Upgrades with Regression-Free Compatible Training in Image
Retrieval, ICLR 2022; temperature, K and margin are those of its published code.
Differs from the published code, which with published = True is computed as it is:
- f_j has a gradient, too; published, e_ij pushes the anchor alone, on one rank as on many;
- a triplet's mean is over the negatives that there are; published, sums are divided by K times the
  number of images also where there are fewer, and K has to be given;
- where K is more than the images there are, all are taken; published, that is an error.
"""

import torch
import torch.nn.functional as F

from bct.distributed import mean_of_chosen
from bct.training.pairwise import compared, contrast

LOSSES = ("contra_ract", "contra", "triplet", "triplet_ract")


def hot_refresh(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    old: torch.Tensor,
    loss: str = "contra_ract",
    temperature: float = 0.01,
    topk: int = 10,
    margin: float = 0.8,
    published: bool = False,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch; 0 without negatives.

    Args:
        embeddings: float32 (B, D), new; labels: int64 (B,); old: (B, D), of the same images.
        loss: one of LOSSES. temperature: t of the contrasts. margin: of the triplets.
        topk: K; 0 or less: all.
        present: bool (B,), which old embeddings there are; the others are nobody's positive or
            negative. None: all. Not published.
    """
    new, old = F.normalize(embeddings), F.normalize(old)
    with_new = loss.endswith("_ract")
    own, families = compared(new, old, labels, topk, with_new, published, present)
    if loss.startswith("contra"):
        return contrast(own, families, temperature, present)
    return sum(triplet(own, family, margin, published, present) for family in families)


def triplet(
    own: torch.Tensor,
    negatives: torch.Tensor,
    margin: float,
    published: bool = False,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """By how much an image's own old embedding, of cosine own (B,), is not nearer by the margin
    than its negatives, of cosines (B, K)."""
    excess = F.relu(distance(own)[:, None] - distance(negatives) + margin)
    if published:
        return excess.mean()
    chosen = negatives.isfinite()
    return mean_of_chosen(excess, chosen if present is None else chosen & present[:, None])


def distance(cosines: torch.Tensor) -> torch.Tensor:
    """Between unit vectors, without a gradient where they meet."""
    return (2 - 2 * cosines).clamp_min(1e-12).sqrt()
