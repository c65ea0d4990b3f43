"""UniBCT: the classification loss + weight * the influence of loss.py, once there are prototypes.

The prototypes are computed at the beginning of the epochs in refresh_epochs; before the first, the
loss is the classification alone. reading = "advbct" is what AdvBCT's code compares itself with:
the prototypes are class centres of the old embeddings, and stay; classes that the old model has not
seen have one like the others (unseen = "synthesise"), or their images have no influence ("ignore"),
as in AdvBCT's code.

Needs of the old model: embeddings and labels of the new model's training set, or for "advbct" their
class statistics.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bct.distributed import all_gather_shares
from bct.errors import BctError
from bct.keys import choice, number, several, text, whole
from bct.method import Method
from bct.train import main
from bct.training.class_shards import class_share, own_classes
from methods.UniBCT.loss import (
    influence,
    published_arcface,
    published_influence,
    refined_prototypes,
)


class UniBCT(Method):
    defaults = {  # noqa: RUF012
        "reading": choice("mixbct", "advbct"),
        "refresh_epochs": several(whole(None), [10, 20]),
        "propagation": number(0.9, 0, below=1),  # lam
        "temperature": number(0.05, above=0),  # t
        "influence_scale": number(None, above=0),  # None: 64, in AdvBCT's reading 30
        "influence_angle": number(0.3),  # the margin of AdvBCT's reading
        "influence_weight": number(1.0, 0),
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "old_embedding_label": text(None),
        "unseen": choice("synthesise", "ignore"),  # classes the old model has not seen, in AdvBCT's
        "class_statistics": text(None),
    }

    @classmethod
    def needs(cls, cfg):
        if cfg.reading == "advbct":
            return ("class_statistics",)
        return "old_embedding", "old_embedding_label"

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.reading == "advbct"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        self.published = cfg.parity == "published"
        self.register_buffer("row", None, persistent=False)  # of each class, in AdvBCT's reading
        self.scale = cfg.influence_scale or {"mixbct": 64.0, "advbct": 30.0}[cfg.reading]
        if cfg.reading == "advbct":
            self.take_centres(old)
        else:
            self.prepare(old)

    def take_centres(self, old) -> None:
        """The classes' centres, as they are, and each class's row of them."""
        table = old.table("class_statistics")
        known = table["count"] > 0
        if self.cfg.unseen == "ignore":
            known &= old.new_to_old() >= 0
        if not known.any():
            raise BctError(
                "the old model has seen none of the new classes, so there is no prototype",
                'use unseen="synthesise"',
            )
        centres, count = F.normalize(table["centre"][known]), int(known.sum())
        self.start = 0
        if not self.published:
            centres, (self.start, _) = own_classes(centres, count).clone(), class_share(count)
        self.register_buffer("prototypes", centres, persistent=False)
        self.row = (known.cumsum(0) - 1).where(known, -1)

    def prepare(self, old) -> None:
        """Room for the prototypes, and which images this rank's are made of."""
        cfg = self.cfg
        check(cfg)
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
        if self.row is None and epoch in self.cfg.refresh_epochs:
            new = torch.from_numpy(embed(self.images))
            old = self.old.rows("old_embedding", torch.from_numpy(self.images))
            settings = self.cfg.propagation, self.cfg.temperature, self.published
            own = refined_prototypes(new, old, self.sizes, *settings).to(self.prototypes.device)
            if self.published:  # every rank holds all
                own = all_gather_shares(own, self.cfg.num_classes)
            self.prototypes.copy_(own)

    def forward(self, embeddings, batch, head, rng):
        losses = {"cls": head(embeddings, batch.labels, rng)}
        if self.row is not None or batch.epoch >= min(self.cfg.refresh_epochs):
            term = self.influence(embeddings.float(), batch.labels)
            losses["influence"] = self.cfg.influence_weight * term
        return losses

    def influence(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        margin = 0.0
        if self.row is not None:
            labels, margin = self.row[labels], self.cfg.influence_angle
        judged = embeddings, labels, self.prototypes
        if not self.published:
            return influence(*judged, self.scale, self.start, margin)
        if self.row is None:
            return published_influence(*judged)
        return published_arcface(*judged, self.scale, margin)


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
