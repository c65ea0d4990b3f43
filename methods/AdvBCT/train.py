"""AdvBCT: the classification loss + the balls and the adversary of loss.py.

Needs of the old model: embeddings and class statistics of the new model's training set.
"""

import logging

from bct.errors import BctError
from bct.keys import number, text, whole
from bct.method import Method, present
from bct.train import main
from methods.AdvBCT.loss import AdvBCTLoss


class AdvBCT(Method):
    defaults = {  # noqa: RUF012
        "threshold": number(0.4, 0),
        "adv_weight": number(4.0, 0),  # of p2s and of adv
        "hidden": whole(100, least=1, most=65536),  # width of the discriminator
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "class_statistics": text(None),
    }

    @classmethod
    def needs(cls, cfg):
        return "old_embedding", "class_statistics"

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        table = old.table("class_statistics")
        undefined = int((table["kept"] <= 1).sum())
        if undefined == cfg.num_classes:
            raise BctError(
                "no class has two images, so no class has a radius", "use data with more images"
            )
        if undefined:
            logging.warning("%d classes have one image or none, so no radius and no p2s", undefined)
        balls = table["centre"], table["radius"], table["kept"]
        settings = cfg.threshold, cfg.adv_weight, cfg.hidden, cfg.parity == "published"
        self.loss = AdvBCTLoss(*balls, *settings)

    def undecayed(self):
        return [] if self.cfg.parity == "published" else [self.loss.boundary]

    def fetch(self, index, labels, rng):
        features = self.old.rows("old_embedding", index)
        return {"features": features} | present(self.old, features)

    def forward(self, embeddings, batch, head, rng):
        old, progress = batch.old["features"], (batch.epoch, self.cfg.num_epoch)
        terms = self.loss(embeddings, batch.labels, old, *progress, batch.old.get("present"))
        return {"cls": head(embeddings, batch.labels, rng), **terms}


if __name__ == "__main__":
    main(AdvBCT, "configs/demo.py")
