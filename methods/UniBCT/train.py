"""UniBCT: the classification loss + weight * the influence of loss.py, once there are prototypes.

The prototypes are computed at the beginning of the epochs in refresh_epochs; before the first, the
loss is the classification alone.

Needs of the old model: embeddings and labels of the new model's training set.
"""

import numpy as np
import torch

from bct.distributed import all_gather_shares
from bct.errors import BctError
from bct.keys import number, several, text, whole
from bct.method import Method
from bct.train import main
from bct.training.class_shards import class_share
from methods.UniBCT.loss import influence, published_influence, refined_prototypes


class UniBCT(Method):
    defaults = {  # noqa: RUF012
        "refresh_epochs": several(whole(None), [10, 20]),
        "propagation": number(0.9, 0, below=1),  # lam
        "temperature": number(0.05, above=0),  # t
        "influence_scale": number(64.0, above=0),
        "influence_weight": number(1.0, 0),
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "old_embedding_label": text(None),
    }

    @classmethod
    def needs(cls, cfg):
        return "old_embedding", "old_embedding_label"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        check(cfg)
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
            settings = self.cfg.propagation, self.cfg.temperature, self.published
            own = refined_prototypes(new, old, self.sizes, *settings).to(self.prototypes.device)
            if self.published:  # every rank holds all
                own = all_gather_shares(own, self.cfg.num_classes)
            self.prototypes.copy_(own)

    def forward(self, embeddings, batch, head, rng):
        losses = {"cls": head(embeddings, batch.labels, rng)}
        if batch.epoch >= min(self.cfg.refresh_epochs):
            judged = embeddings.float(), batch.labels, self.prototypes
            if self.published:
                term = published_influence(*judged)
            else:
                term = influence(*judged, self.cfg.influence_scale, self.start)
            losses["influence"] = self.cfg.influence_weight * term
        return losses


def check(cfg) -> None:
    """Raises BctError for settings with which there would be no prototypes."""
    if not any(0 <= epoch < cfg.num_epoch for epoch in cfg.refresh_epochs):
        raise BctError(
            f"refresh_epochs = {cfg.refresh_epochs}: in {cfg.num_epoch} epochs there would "
            "never be a prototype",
            "name an epoch of this run, counted from 0, such as a third of them",
        )


if __name__ == "__main__":
    main(UniBCT, "configs/demo.py")
