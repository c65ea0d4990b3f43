"""MixBCT: old embeddings as additional training samples of the new classifier.

    z_i  = n(o_i)  for int(ratio * B) rows of the batch, drawn among the credible ones
           f_i     for the others
    loss = L(z, y),        n(v) = v / |v|

f_i is the new embedding and o_i the stored old one of the same image, L the classification loss
that the training has anyway, ArcFace in the paper. The old rows are constants: they pull the
classifier's centres, and through these the new embeddings, into the old space. An old embedding is
credible when it is among the T * n nearest to the mean of its class.

Paper: Liang et al., MixBCT: Towards Self-Adapting Backward-Compatible Training, arXiv 2308.06948.
Differs from the published code: the rows come from a seeded stream, only their old embeddings are
read, and a batch with too few credible rows uses those it has. The arithmetic is the same, so
parity = "published" changes nothing here (it does in tools/extract_features.py). Where old
embeddings cover a part of the images, ratio is the share of that part: if all of its rows became
old ones, the new network would never learn these classes: nothing would tie it to the old space.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def draw_rows(
    credible: torch.Tensor,
    ratio: float,
    rng: torch.Generator | None = None,
    count: int | None = None,
) -> torch.Tensor:
    """Numbers int64 (m,) of the rows that become old ones, m = int(ratio * count) or fewer.

    Args:
        credible: bool (B,), which rows may.
        ratio: share of those that there are.
        count: how many that is; None: B.
    """
    draw = torch.rand(len(credible), generator=rng, device=credible.device)
    count = len(credible) if count is None else count
    top = draw.where(credible, -1.0).topk(int(ratio * count))
    return top.indices[top.values >= 0]


def mixbct(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor,
    old: torch.Tensor,
    classify: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The loss.

    Args:
        embeddings: float32 (B, D), new; labels: int64 (B,).
        rows: int64 (m,), see draw_rows; old: float32 (m, D), the old embeddings of these rows.
        classify: (embeddings (B, D), labels) -> the classification loss, a scalar.
    """
    return classify(embeddings.index_copy(0, rows, F.normalize(old)), labels)
