"""UniBCT: BCT's influence with prototypes that the new model's neighbourhood graph has cleaned.

    influence            mean_i -log softmax_y( s cos(f_i, p_c) ),        n(v) = v / |v|
    in AdvBCT's reading  mean_i -log softmax_y( s cos( arccos n(f_i) . p_c + m [c = y] ) )
    refined_prototypes   p_c = n( mean of the rows of  (1 - lam) (I - lam A)^-1 O_c )
                         A   = softmax over j of  n(f_i) . n(f_j) / t,  j != i, both in class c

f is the new embedding, y its class. O_c (n, D) are the old embeddings of the images of class c:
each is replaced by what flows to it from the images that the new model finds similar, so that
outliers lose weight. The prototypes are constants of the influence, made anew a few times in a
training. The training adds a classification loss to it. In AdvBCT's reading p_c is n(mean of n(o)
over class c), made once, without the graph; s = 30, m = 0.3, and i runs over images of old classes.

Paper: Zhang et al., Towards Universal Backward-Compatible Representation Learning, IJCAI 2022.
Differs from the published code:
- A's rows sum to 1, and it is made of normalised new embeddings; published, the softmax runs over
  columns, which makes p_c the plain mean of O_c whatever the graph;
- prototypes are normalised and logits have a scale; published, the prototypes' length is the scale;
- AdvBCT's margin falls for all angles; published, the target's logit rises again beyond pi - m;
- one system is solved per class, for all classes of equal size at once, by the rank that owns them;
  published, one per image, on the first of at least two ranks.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bct.training.margin_softmax import prototype_softmax

_BLOCK = 1 << 24  # graph entries held at once


def influence(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    prototypes: torch.Tensor,
    scale: float = 64.0,
    start: int = 0,
    margin: float = 0.0,
) -> torch.Tensor:
    """The loss, whose mean over ranks is that of the global batch; 0 without labelled rows.

    Args:
        embeddings: float32 (B, D), new; labels: int64 (B,), -1 leaves a row out.
        prototypes: float32 (C, D); on several ranks (n, D), this rank's share of the classes, the
            first of which is `start`.
        scale: s; margin: m.
    """
    return prototype_softmax(embeddings, labels, prototypes, start, (1.0, margin, 0.0), scale)


def published_influence(
    embeddings: torch.Tensor, labels: torch.Tensor, prototypes: torch.Tensor
) -> torch.Tensor:
    """The loss of float32 embeddings (B, D), labels (B,) and all prototypes (C, D), as they are."""
    return F.cross_entropy(F.normalize(embeddings) @ prototypes.t(), labels)


def published_arcface(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    prototypes: torch.Tensor,
    scale: float = 30.0,
    margin: float = 0.3,
) -> torch.Tensor:
    """AdvBCT's, of float embeddings (B, D), labels (B,), -1 leaves a row out, and all unit
    prototypes (C, D); 0 without labelled rows."""
    embeddings, labels = embeddings[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return embeddings.sum()
    angles = torch.acos(F.normalize(embeddings) @ prototypes.t())
    target = F.one_hot(labels, len(prototypes)).to(angles)
    return F.cross_entropy(scale * torch.cos(angles + margin * target), labels)


def refined_prototypes(
    new: torch.Tensor,
    old: torch.Tensor,
    sizes: np.ndarray,
    propagation: float = 0.9,
    temperature: float = 0.05,
    published: bool = False,
) -> torch.Tensor:
    """Prototypes (C, D) of classes whose images lie one after another.

    The mean over rows is taken first: p = w^T O with (I - lam A)^T w = (1 - lam) / n, so that a
    class has one right-hand side instead of D. Classes of equal size are solved together.

    Args:
        new, old: float32 (m, D), embeddings of the same images, raw, class after class.
        sizes: int (C,), images per class, none 0.
        propagation: lam; temperature: t.
    """
    if not published:
        new = F.normalize(new)
    first = np.cumsum(sizes) - sizes
    out = old.new_empty(len(sizes), old.shape[1])
    for n in np.unique(sizes):
        alike = np.flatnonzero(sizes == n)  # classes
        at_once = max(1, _BLOCK // int(n * n))
        for classes in np.array_split(alike, -(-len(alike) // at_once)):
            rows = torch.from_numpy(first[classes][:, None] + np.arange(n))  # (K, n)
            weight = _weights(new[rows], propagation, temperature, published)
            out[torch.from_numpy(classes)] = (weight[:, None] @ old[rows]).squeeze(1)
    return out if published else F.normalize(out)


def _weights(
    new: torch.Tensor, propagation: float, temperature: float, published: bool
) -> torch.Tensor:
    """w (K, n) of K classes of n images each, whose new embeddings are (K, n, D); it sums to 1."""
    n = new.shape[1]
    graph = new @ new.mT / temperature  # (K, n, n)
    graph.diagonal(dim1=1, dim2=2).fill_(-1e9)  # an only image is its own neighbour
    graph = graph.softmax(1 if published else 2)
    system = torch.eye(n) - propagation * graph.mT
    return torch.linalg.solve(system, torch.full((len(new), n), (1 - propagation) / n))
