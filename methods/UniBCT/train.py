"""UniBCT: BCT with prototypes that the new model's neighbourhood graph has cleaned.

    loss = ArcFace(W; f, y) + weight * -log softmax_y( s cos(f, p_c) )     once there are prototypes
    p_c  = mean of the rows of  (1 - lam) (I - lam A)^-1 O_c
    A    = softmax over j of  n(f_i) . n(f_j) / t,  j != i, both in class c

O_c (n, D) are the old embeddings of the images of class c: each is replaced by what flows to it
from the images that the new model finds similar, so that outliers lose weight. The prototypes are
computed at the beginning of the epochs in refresh_epochs; before the first, the loss is ArcFace.

Paper: Zhang et al., Towards Universal Backward-Compatible Representation Learning, IJCAI 2022.
Needs of the old model: embeddings and labels of the new model's training set.
Differs from the published code, which with parity = "published" is computed as it is:
- A's rows sum to 1, and it is made of normalised new embeddings; published, the softmax runs over
  columns, which makes p_c the plain mean of O_c whatever the graph;
- prototypes are normalised and logits have a scale; published, the prototypes' length is the scale;
- one system is solved per class, for all classes of equal size at once, by the rank that owns them;
  published, one per image, on the first of at least two ranks.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bct.distributed import all_gather_shares
from bct.errors import BctError
from bct.method import Method
from bct.train import main
from bct.training.class_shards import class_share
from bct.training.margin_softmax import prototype_softmax

_BLOCK = 1 << 24  # graph entries held at once


class UniBCT(Method):
    defaults = {  # noqa: RUF012
        "refresh_epochs": [10, 20],
        "propagation": 0.9,  # lam
        "temperature": 0.05,  # t
        "influence_scale": 64.0,
        "influence_weight": 1.0,
        "old_embedding": None,  # paths; None: they follow from scenario and old_config
        "old_embedding_label": None,
    }

    @classmethod
    def needs(cls, cfg):
        return "old_embedding", "old_embedding_label"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        if not any(0 <= epoch < cfg.num_epoch for epoch in cfg.refresh_epochs):
            raise BctError(
                f"refresh_epochs = {cfg.refresh_epochs}: in {cfg.num_epoch} epochs there would "
                "never be a prototype",
                "name an epoch of this run, counted from 0, such as a third of them",
            )
        if not (0 <= cfg.propagation < 1 and cfg.temperature > 0):
            raise BctError(
                f"propagation = {cfg.propagation}, temperature = {cfg.temperature}",
                "propagation lies in [0, 1), temperature above 0",
            )
        self.published = cfg.parity == "published"
        self.start, count = class_share(cfg.num_classes)
        self.class_sharded = () if self.published else ("prototypes",)
        rows = cfg.num_classes if self.published else count
        self.register_buffer("prototypes", torch.zeros(rows, cfg.embedding_size))
        labels = old.whole("old_embedding_label").numpy()
        sizes = np.bincount(labels, minlength=cfg.num_classes)
        if (sizes == 0).any():
            raise BctError(
                f"class {np.argmin(sizes)} has no old embedding, so it has no prototype",
                "number the classes 0, 1, ... without gaps (tools/folder_to_rec.py does)",
            )
        order = np.argsort(labels, kind="stable")  # image indices, class by class
        ends = np.cumsum(sizes)
        first = ends[self.start] - sizes[self.start]
        self.images = order[first : ends[self.start + count - 1]]
        self.sizes = sizes[self.start : self.start + count]

    def begin_epoch(self, epoch, embed):
        if epoch in self.cfg.refresh_epochs:
            new = torch.from_numpy(embed(self.images))
            old = self.old.rows("old_embedding", torch.from_numpy(self.images))
            own = refined_prototypes(self.cfg, new, old, self.sizes).to(self.prototypes.device)
            if self.published:  # every rank holds all
                own = all_gather_shares(own, self.cfg.num_classes)
            self.prototypes.copy_(own)

    def forward(self, embeddings, batch, head, rng):
        losses = {"cls": head(embeddings, batch.labels, rng)}
        if batch.epoch >= min(self.cfg.refresh_epochs):
            influence = self.influence(embeddings.float(), batch.labels)
            losses["influence"] = self.cfg.influence_weight * influence
        return losses

    def influence(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.published:
            return F.cross_entropy(F.normalize(embeddings) @ self.prototypes.t(), labels)
        scale = self.cfg.influence_scale
        return prototype_softmax(embeddings, labels, self.prototypes, self.start, scale=scale)


def refined_prototypes(
    cfg, new: torch.Tensor, old: torch.Tensor, sizes: np.ndarray
) -> torch.Tensor:
    """Prototypes (C, D) of classes whose images lie one after another.

    The mean over rows is taken first: p = w^T O with (I - lam A)^T w = (1 - lam) / n, so that a
    class has one right-hand side instead of D. Classes of equal size are solved together.

    Args:
        new, old: float32 (m, D), embeddings of the same images, raw, class after class.
        sizes: int (C,), images per class, none 0.
    """
    published = cfg.parity == "published"
    if not published:
        new = F.normalize(new)
    first = np.cumsum(sizes) - sizes
    out = old.new_empty(len(sizes), old.shape[1])
    for n in np.unique(sizes):
        at_once = max(1, _BLOCK // int(n * n))
        for classes in np.array_split(
            np.flatnonzero(sizes == n), -(-int((sizes == n).sum()) // at_once)
        ):
            rows = torch.from_numpy(first[classes][:, None] + np.arange(n))  # (K, n)
            graph = new[rows] @ new[rows].mT / cfg.temperature  # (K, n, n)
            graph.diagonal(dim1=1, dim2=2).fill_(-1e9)  # an only image is its own neighbour
            graph = graph.softmax(1 if published else 2)
            system = torch.eye(n) - cfg.propagation * graph.mT
            right = torch.full((len(rows), n), (1 - cfg.propagation) / n)
            weight = torch.linalg.solve(system, right)  # (K, n), sums to 1
            out[torch.from_numpy(classes)] = (weight[:, None] @ old[rows]).squeeze(1)
    return out if published else F.normalize(out)


if __name__ == "__main__":
    main(UniBCT, "configs/demo.py")
