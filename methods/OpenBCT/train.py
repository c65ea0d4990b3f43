"""OpenBCT: a sum of terms, each of which ties the new embeddings to the old model in its way.

    loss = sum over the terms t of weight_t L_t               terms = {"cls": 1.0, "influence": 1.0}

    cls   the head's loss       influence   influence.py       triplet       triplet.py
    l2    regression.py         lwf         lwf.py             contrastive   contrastive.py

influence and lwf ask an old classifier: class means of old embeddings (fill = "all"), the old
model's own, with which images of classes unknown to it have no influence ("off"), or its own with
means for these classes ("missing", the paper's). lwf, l2, triplet and contrastive take old
embeddings: the stored ones (teacher = "cached"), or what the old network makes of the same view of
an image ("view"). The normalised classifier is head = "margin" with margin_list = (1, 0, 0) and
scale = 30; a training without cls has head = "none". Old embeddings of another width: dimensions =
"leading" or "zero_pad".

Paper: Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, and openBCT's
baselines.
Needs of the old model: its embeddings of the new model's training set, and its model.pt for its own
classifier and for teacher = "view".
Differs from the published code, apart from what the terms' files say, in both parities:
- terms compose; published, most combinations fail or drop one;
- the normalised classifier's rows have unit length; published, its columns.
"""

import torch
import torch.nn.functional as F

from bct.distributed import all_gather, rank
from bct.errors import BctError
from bct.keys import choice, flag, number, text, weights
from bct.method import Method
from bct.models.widths import fit
from bct.train import main
from methods.OpenBCT import contrastive, regression, triplet
from methods.OpenBCT.influence import influence, old_logits
from methods.OpenBCT.lwf import lwf
from methods.OpenBCT.masks import masks
from methods.OpenBCT.pseudo_classifier import old_classifier

JUDGED, TAUGHT = {"influence", "lwf"}, {"lwf", "l2", "triplet", "contrastive"}


class OpenBCT(Method):
    dimensions = ("equal", "leading", "zero_pad")
    defaults = {  # noqa: RUF012
        "terms": weights({"cls": 1.0, "influence": 1.0}, "cls", *sorted(JUDGED | TAUGHT)),
        # new classes with a made row in the old classifier
        "fill": choice("all", "missing", "off"),
        "normalise": flag(False),  # give made rows unit length
        "logits": choice("raw", "cosine"),  # of the old classifier
        "influence_scale": number(16.0, above=0),  # of cosine logits
        "teacher": choice("cached", "view"),
        "lwf_temperature": number(1.0, above=0),
        "triplet_margin": number(1.0, above=0),
        "contrastive_temperature": number(0.05, above=0),
        "positives": choice("class", "self"),  # of triplet and contrastive
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "old_embedding_label": text(None),
    }

    @classmethod
    def classifies(cls, cfg):
        return "cls" in cfg.terms

    @classmethod
    def needs(cls, cfg):
        check(cfg)
        made = JUDGED & set(cfg.terms) and cfg.fill != "off"
        return ("old_embedding", "old_embedding_label") if made else ("old_embedding",)

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        self.published, self.taught = cfg.parity == "published", bool(TAUGHT & set(cfg.terms))
        viewing = self.taught and cfg.teacher == "view"
        self.network = old.network() if viewing else None
        parts = old_classifier(cfg, old) if JUDGED & set(cfg.terms) else (None, None, None)
        # made rows are means of unit embeddings, but a classifier of such only was trained so
        self.unit = bool(JUDGED & set(cfg.terms)) and cfg.fill != "all" and old.classifies_unit()
        for name, value in zip(("weight", "bias", "row_of_class"), parts, strict=True):
            self.register_buffer(name, value, persistent=False)

    def fetch(self, index, labels, rng):
        cached = self.taught and self.cfg.teacher == "cached"
        return {"features": self.old.rows("old_embedding", index)} if cached else {}

    def forward(self, embeddings, batch, head, rng):
        cfg, embeddings, labels = self.cfg, embeddings.float(), batch.labels
        new = fit(embeddings, self.old.dim, cfg.dimensions)  # (B, d_o)
        old = self.old_embeddings(batch) if self.taught else None
        terms = {
            "cls": lambda: head(embeddings, labels, rng),
            "influence": lambda: influence(self.judge(new), self.row_of_class[labels]),
            "lwf": lambda: self.lwf(new, old),
            "l2": lambda: self.l2(embeddings, new, old),
            "triplet": lambda: self.compare(triplet, new, old, labels, cfg.triplet_margin),
            "contrastive": lambda: self.compare(
                contrastive, new, old, labels, cfg.contrastive_temperature
            ),
        }
        return {name: weight * terms[name]() for name, weight in cfg.terms.items()}

    def old_embeddings(self, batch) -> torch.Tensor:
        if self.cfg.teacher == "cached":
            return batch.old["features"]
        return self.network(batch.images)

    def judge(self, features: torch.Tensor) -> torch.Tensor:
        """The old classifier's logits (B, K) of features (B, d_o)."""
        cfg = self.cfg
        features = F.normalize(features) if self.unit else features
        return old_logits(features, self.weight, self.bias, cfg.logits, cfg.influence_scale)

    def lwf(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        teacher = self.judge(F.normalize(old) if self.published else old)
        return lwf(self.judge(new), teacher, self.cfg.lwf_temperature)

    def l2(self, embeddings: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        if self.published:
            return regression.published(embeddings, old)
        return regression.corrected(new, old)

    def compare(self, term, new, old, labels, setting) -> torch.Tensor:
        """triplet or contrastive, of new (B, d_o) and old embeddings of the batch: corrected, of
        all ranks, (N, d_o); published, of this one."""
        everyone, first, loss = labels, 0, term.published
        if not self.published:
            first = rank() * len(labels)
            old, everyone, loss = all_gather(old), all_gather(labels), term.corrected
        other, positive = masks(labels, everyone, first, self.cfg.positives)
        return loss(new, old, other, positive, setting)


def check(cfg) -> None:
    """Raises BctError for terms and settings that don't go together."""
    if ("cls" in cfg.terms) == (cfg.head == "none"):
        raise BctError(
            f"head = {cfg.head!r}, and the terms are {', '.join(cfg.terms)}",
            'a head comes with the term cls; without it, set head="none"',
        )
    if cfg.parity == "published":
        if cfg.logits == "cosine" and JUDGED & set(cfg.terms):
            raise BctError("the published logits are raw", 'use logits="raw" or parity="corrected"')
        if cfg.positives == "class" and "triplet" in cfg.terms:
            raise BctError(
                "the published triplet's positive is the image itself",
                'use positives="self" or parity="corrected"',
            )


if __name__ == "__main__":
    main(OpenBCT, "configs/demo.py")
