"""LCE: new features within their class's old cone, new classifier rows on the old class centres.

    mu_c = mean of the old unit embeddings of class c,   n(v) = v / |v|,   < , > the scalar product

    AdvBCT's reading    boundary  = mean_i max( arccos <n(f_i), n(mu_y)> - theta_y, 0 )
                        alignment = mean_i ( 1 - <n(W_y), n(mu_y)> )
    IrvingMeng/LCE's    boundary  = mean_i max( kappa_y - <n(f_i), n(mu_y)>, 0 )
                        alignment = mean over classes and dimensions of ( n(W_c) - n(mu_c) )^2
                                  = 2 / D  mean_c ( 1 - <n(W_c), n(mu_c)> )

f_i is the new embedding of image i, y its class, W_c the new classifier's row of class c; mu,
theta and kappa are constants. theta_c is the largest angle of an old embedding of class c to mu_c
after the 1.5 IQR rule, kappa_c the smallest cosine without any rule. The training adds a
classification loss to it; AdvBCT adds both terms, IrvingMeng/LCE 100 alignment + boundary.

Paper: Meng et al., Learning Compatible Embeddings, ICCV 2021. Further reading: Pan et al., AdvBCT,
CVPR 2023, and the code of both.
Differs from the published code, which with published = True is computed as it is:
- IrvingMeng/LCE's boundary takes f_i as it is, of a length near 45, so that it is 0 as soon as the
  true cosine is a 45th of kappa; n(f_i) is what a cosine is of;
- a class of one image has no angle, but a centre: AdvBCT's alignment leaves it out, too. What the
  paper aligns are the centres of all classes that there are;
- the angle is 2 arctan(|u - v| / |u + v|), which has a slope where u = v; that of arccos is
  infinite there, and rounding brings cosines above 1, whose arccos is no number;
- means are over the images of all ranks; published, each rank's own. Where no image has a boundary
  the loss is 0 in both; AdvBCT's code divides by zero, and it takes 256 dimensions only.
"""

import torch
import torch.nn.functional as F

from bct.distributed import all_reduce, mean_of_chosen, world_size


def angle_boundary(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    centres: torch.Tensor,
    angles: torch.Tensor,
    chosen: torch.Tensor,
    published: bool = False,
) -> torch.Tensor:
    """AdvBCT's boundary, whose mean over ranks is that of the global batch.

    Args:
        embeddings: float (B, D), new; labels: int64 (B,).
        centres: (C, D), n(mu); angles: (C,), theta. chosen: bool (B,), images that have both.
    """
    f, centre = F.normalize(embeddings), centres[labels]
    angle = torch.acos((f * centre).sum(1)) if published else angle_between(f, centre)
    return mean(F.relu(angle - angles[labels]), chosen, published)


def cosine_boundary(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    centres: torch.Tensor,
    cosines: torch.Tensor,
    chosen: torch.Tensor,
    published: bool = False,
) -> torch.Tensor:
    """IrvingMeng/LCE's boundary; arguments as above, cosines: (C,), kappa."""
    f = embeddings if published else F.normalize(embeddings)
    cosine = (f * centres[labels]).sum(1).clamp(-1, 1)
    return mean(F.relu(cosines[labels] - cosine), chosen, published)


def alignment(rows: torch.Tensor, centres: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """sum of weight (1 - cosine) over classifier rows (k, D) and their classes' n(mu), (k, D).

    weight: (k,); that of AdvBCT's reading is `shares`, of the other 2 / (D C).
    """
    return (weight.to(rows.dtype) * (1 - (F.normalize(rows) * centres).sum(1))).sum()


def shares(chosen: torch.Tensor, published: bool = False) -> torch.Tensor:
    """What each image counts in the mean over those chosen, bool (B,), of all ranks: float64 (B,).
    All ranks' sum is 1, or 0 where none is chosen."""
    count = chosen.sum(dtype=torch.float32)
    count = count.clamp_min(1) * world_size() if published else all_reduce(count).clamp_min(1)
    return chosen.double() / count


def mean(values: torch.Tensor, chosen: torch.Tensor, published: bool) -> torch.Tensor:
    """Of the chosen values of all ranks; published, of this one."""
    if published:
        return torch.where(chosen, values, 0).sum() / chosen.sum().clamp_min(1)
    return mean_of_chosen(values, chosen)


def angle_between(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Of unit rows (B, D) each two: (B,)."""
    apart, together = (torch.linalg.vector_norm(w, dim=1) for w in (u - v, u + v))
    return 2 * torch.atan2(apart, together)
