"""BCT: the classification loss + weight * the influence, which is the old classifier's; see
loss.py.

The old model has seen some of the classes or none: with prototypes (influence = "prototype") the
others are synthesised in the same way, as in the paper (unseen = "synthesise"), or their images are
left out of the influence (unseen = "ignore"). The old model's own classifier (influence =
"old_classifier") knows only old classes; it gets n(f) for f if it was trained so (head_unit).

Needs of the old model: the class means of its embeddings of the new model's training set, and its
model.pt for the old classifier.
"""

import torch
import torch.nn.functional as F

from bct.errors import BctError
from bct.keys import choice, number, several, text
from bct.method import Method
from bct.train import main
from bct.training.class_shards import class_share, own_classes
from methods.BCT.loss import classifier_influence, prototype_influence, published_influence


class BCT(Method):
    defaults = {  # noqa: RUF012
        "influence": choice("prototype", "old_classifier"),
        "influence_scale": number(64.0, above=0),
        # as margin_list; none
        "influence_margin": several(number(None), (1.0, 0.0, 0.0), length=3),
        "influence_weight": number(1.0, 0),
        "unseen": choice("synthesise", "ignore"),  # classes the old model has not seen
        "old_prototype": text(None),  # path; None: it follows from scenario and old_config
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_prototype",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.influence == "old_classifier" or cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        if cfg.parity == "published" and cfg.unseen == "ignore":
            raise BctError(
                "the published BCT ignores no class",
                'use unseen="synthesise" or parity="corrected"',
            )
        # each class's row of the prototypes or the classifier, -1: its images have no influence
        row = torch.arange(cfg.num_classes)
        if cfg.influence == "old_classifier":
            weight, bias = old.classifier()
            self.unit = old.classifies_unit()
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", bias, persistent=False)
        else:
            prototypes = old.whole("old_prototype")
            if cfg.parity == "corrected":
                if old.absent:  # classes of which no image has an old embedding
                    known = prototypes.any(1)
                    row, prototypes = (known.cumsum(0) - 1).where(known, -1), prototypes[known]
                count = len(prototypes)
                prototypes = own_classes(prototypes, count).clone()
                self.start, _ = class_share(count)
            self.register_buffer("prototypes", prototypes, persistent=False)
        if cfg.influence == "old_classifier" or cfg.unseen == "ignore":
            old_label = old.new_to_old()
            row = old_label if cfg.influence == "old_classifier" else row.where(old_label >= 0, -1)
            if (row < 0).all():
                raise BctError(
                    f"in {cfg.scenario} the old model has seen none of the new classes",
                    'use influence="prototype" with unseen="synthesise"',
                )
        self.register_buffer("row", row, persistent=False)

    def forward(self, embeddings, batch, head, rng):
        influence = self.influence(embeddings.float(), batch.labels)
        return {
            "cls": head(embeddings, batch.labels, rng),
            "influence": self.cfg.influence_weight * influence,
        }

    def influence(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cfg, rows = self.cfg, self.row[labels]
        if cfg.influence == "old_classifier":
            features = F.normalize(embeddings) if self.unit else embeddings
            return classifier_influence(features, rows, self.weight, self.bias)
        if cfg.parity == "published":
            return published_influence(embeddings, labels, self.prototypes)
        settings = cfg.influence_margin, cfg.influence_scale
        return prototype_influence(embeddings, rows, self.prototypes, *settings, self.start)


if __name__ == "__main__":
    main(BCT, "configs/demo.py")
