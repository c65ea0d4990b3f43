"""L2 and weakened L2: w_0 times the classification loss + w_1 times the distance of loss.py.

Needs of the old model: its embeddings of the new model's training set.
"""

from bct.keys import number, several, text
from bct.method import Method, present
from bct.train import main
from methods.L2.loss import l2


class L2(Method):
    defaults = {  # noqa: RUF012
        # of the classification, of the distance
        "loss_weight": several(number(None, 0), [1.0, 10.0], length=2),
        "threshold": number(0.0, 0),
        "old_embedding": text(None),  # path; None: it follows from scenario and old_config
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding",)

    @classmethod
    def takes_a_part(cls, cfg):
        return True

    def fetch(self, index, labels, rng):
        features = self.old.rows("old_embedding", index)
        return {"features": features} | present(self.old, features)

    def forward(self, embeddings, batch, head, rng):
        classify, stay = self.cfg.loss_weight
        old, chosen = batch.old["features"], batch.old.get("present")
        distance = l2(embeddings, old, self.cfg.threshold, chosen)
        return {"cls": classify * head(embeddings, batch.labels, rng), "l2": stay * distance}


if __name__ == "__main__":
    main(L2, "configs/demo.py")
