"""Focal distillation: the classification loss + weight * the distance of loss.py.

gate = "old": the old model's own classifier, or class means of its embeddings, see
bct/old_judge.py; gate = "new": the new classifier as it is at this step. None: with parity
"corrected" the old one.

Needs of the old model: its embeddings of the new model's training set; for gate = "old" their class
means, too, and its model.pt for the old classifier.
"""

from bct.keys import choice, number, text
from bct.method import Method, present
from bct.old_judge import JUDGE_KEYS, old_judge
from bct.train import main
from bct.training.classified import names_the_class
from bct.training.replicas import bare
from methods.FocalDistillation.loss import focal_distillation


class FocalDistillation(Method):
    defaults = {  # noqa: RUF012
        "gate": choice(None, "old", "new"),
        "alpha": number(1.0, 0),
        "beta": number(5.0, 0),
        "weight": number(1.0, 0),
        "old_embedding": text(None),  # path; None: it follows from scenario and old_config
        **JUDGE_KEYS,
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding", "old_prototype") if by_old(cfg) else ("old_embedding",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        self.judge = old_judge(cfg, old) if by_old(cfg) else None

    def fetch(self, index, labels, rng):
        features = self.old.rows("old_embedding", index)
        return {"features": features} | present(self.old, features)

    def forward(self, embeddings, batch, head, rng):
        cfg, f, old = self.cfg, embeddings.float(), batch.old["features"]
        classification = head(embeddings, batch.labels, rng)
        if self.judge is None:
            right = names_the_class(bare(head), f, batch.labels)
        else:
            right = self.judge(old).argmax(1) == self.judge.row[batch.labels]
        settings = cfg.alpha, cfg.beta, batch.old.get("present")
        distance = focal_distillation(f, old, right, *settings)
        return {"cls": classification, "distance": cfg.weight * distance}


def by_old(cfg) -> bool:
    """Whether it is the old model that has to be right."""
    return (cfg.gate or ("new" if cfg.parity == "published" else "old")) == "old"


if __name__ == "__main__":
    main(FocalDistillation, "configs/demo.py")
