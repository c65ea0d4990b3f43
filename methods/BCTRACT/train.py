"""BCT-RACT: the classification loss + influence_weight * the influence of loss.py.

The old model's own classifier judges, or class means of its embeddings: see bct/old_judge.py.

Needs of the old model: the class means of its embeddings of the new model's training set, and its
model.pt for the old classifier.
"""

from bct.errors import BctError
from bct.keys import number
from bct.method import Method
from bct.old_judge import JUDGE_KEYS, old_judge
from bct.train import main
from bct.training.other_classes import others_of
from bct.training.replicas import bare
from methods.BCTRACT.loss import bct_ract


class BCTRACT(Method):
    defaults = {  # noqa: RUF012
        **JUDGE_KEYS,
        "influence_weight": number(1.0, 0),
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_prototype",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        if cfg.head == "margin" and cfg.sample_rate < 1:
            raise BctError(
                f"sample_rate = {cfg.sample_rate}, and BCT-RACT's negatives are all new classes",
                "use sample_rate=1.0",
            )
        self.judge = old_judge(cfg, old)
        unknown = int((self.judge.row < 0).sum())
        if unknown and cfg.parity == "published":
            raise BctError(
                f"the old classifier does not know {unknown} of {cfg.num_classes} classes, and the "
                "published code takes images of all",
                'use parity="corrected", or influence="prototype"',
            )

    def forward(self, embeddings, batch, head, rng):
        f, labels = embeddings.float(), batch.labels
        classification = head(embeddings, labels, rng)
        others = others_of(bare(head), f, labels)
        influence = bct_ract(self.judge(f), self.judge.row[labels], others)
        return {"cls": classification, "influence": self.cfg.influence_weight * influence}


if __name__ == "__main__":
    main(BCTRACT, "configs/demo.py")
