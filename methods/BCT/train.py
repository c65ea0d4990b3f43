"""BCT: the old classifier judges the new embeddings, too.

    loss = ArcFace(W; f, y) + weight * influence(f, y)
    influence = -log softmax_y( s cos(f, p_c) ), averaged over the batch        ("prototype")
              = -log softmax_z( V f + b ) over the images of old classes        ("old_classifier"),
                f / |f| for f if the old model was trained so (head_unit)

p_c is the normalised mean of class c's old embeddings, V and b the old model's own classifier, in
which class y has the label z; all are constants. The old model has seen some of the classes or
none: with prototypes the others are synthesised in the same way, as in the paper (unseen =
"synthesise"), or their images are left out of the influence (unseen = "ignore"). The old classifier
knows only old classes.

Paper: Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, sec. 3.
Needs of the old model: the class means of its embeddings of the new model's training set, and its
model.pt for the old classifier.
Differs from the published code, which with parity = "published" is computed as it is:
- the prototypes' logits have a scale and an optional margin; published, they are bare cosines, and
  over 65,402 classes the loss can only move between 11.09 and 10.09;
- the prototypes are cut over the ranks like PartialFC's centres instead of held whole by each.
"""

import torch
import torch.nn.functional as F

from bct.distributed import mean_of_chosen
from bct.errors import BctError
from bct.method import Method
from bct.train import main
from bct.training.class_shards import class_share, own_classes
from bct.training.margin_softmax import prototype_softmax


class BCT(Method):
    defaults = {  # noqa: RUF012
        "influence": "prototype",  # or "old_classifier"
        "influence_scale": 64.0,
        "influence_margin": (1.0, 0.0, 0.0),  # as margin_list; none
        "influence_weight": 1.0,
        "unseen": "synthesise",  # classes the old model has not seen; or "ignore"
        "old_prototype": None,  # path; None: it follows from scenario and old_config
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_prototype",)

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        for key, choices in (
            ("influence", ("prototype", "old_classifier")),
            ("unseen", ("synthesise", "ignore")),
        ):
            if cfg[key] not in choices:
                raise BctError(f"{key} = {cfg[key]!r}", f"choose from {', '.join(choices)}")
        if cfg.parity == "published" and cfg.unseen == "ignore":
            raise BctError(
                "the published BCT ignores no class",
                'use unseen="synthesise" or parity="corrected"',
            )
        old_label = torch.arange(cfg.num_classes)  # -1: its images have no influence
        if cfg.influence == "old_classifier":
            weight, bias = old.classifier()
            self.unit = old.classifies_unit()
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", bias, persistent=False)
        else:
            prototypes = old.whole("old_prototype")
            if cfg.parity == "corrected":
                prototypes = own_classes(prototypes, cfg.num_classes).clone()
                self.start, _ = class_share(cfg.num_classes)
            self.register_buffer("prototypes", prototypes, persistent=False)
        if cfg.influence == "old_classifier" or cfg.unseen == "ignore":
            old_label = old.new_to_old()
            if (old_label < 0).all():
                raise BctError(
                    f"in {cfg.scenario} the old model has seen none of the new classes",
                    'use influence="prototype" with unseen="synthesise"',
                )
        self.register_buffer("old_label", old_label, persistent=False)

    def forward(self, embeddings, batch, head, rng):
        influence = self.influence(embeddings.float(), batch.labels)
        return {
            "cls": head(embeddings, batch.labels, rng),
            "influence": self.cfg.influence_weight * influence,
        }

    def influence(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.cfg.influence == "old_classifier":
            features = F.normalize(embeddings) if self.unit else embeddings
            logits = F.linear(features, self.weight, self.bias)  # (B, C_old)
            old, seen = self.old_label[labels], self.old_label[labels] >= 0
            each = F.cross_entropy(logits, old.where(seen, 0), reduction="none")
            return mean_of_chosen(each, seen)
        if self.cfg.parity == "published":
            return F.cross_entropy(F.normalize(embeddings) @ self.prototypes.t(), labels)
        margin, scale = self.cfg.influence_margin, self.cfg.influence_scale
        labels = labels.where(self.old_label[labels] >= 0, -1)
        return prototype_softmax(embeddings, labels, self.prototypes, self.start, margin, scale)


if __name__ == "__main__":
    main(BCT, "configs/demo.py")
