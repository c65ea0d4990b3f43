"""MixBCT: old embeddings as additional training samples of the new classifier; see loss.py.

Needs of the old model: its embeddings and the credible mask, of the new model's training set.
"""

import logging

from bct.keys import number, text
from bct.method import Method
from bct.train import main
from methods.MixBCT.loss import draw_rows, mixbct


class MixBCT(Method):
    defaults = {  # noqa: RUF012
        # share of the batch that becomes old embeddings; of those in it that there are
        "mix_ratio": number(0.3, 0, 1),
        "T": number(0.9, above=0, most=1),  # share of each class's old embeddings that is credible
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "credible_old_feature": text(None),
    }

    @classmethod
    def needs(cls, cfg):
        return "old_embedding", "credible_old_feature"

    @classmethod
    def takes_a_part(cls, cfg):
        return True

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        credible, present = old.whole("credible_old_feature"), None
        if old.absent:
            present = old.present("old_embedding")
            credible = credible & present  # whatever a mask from elsewhere says
        self.register_buffer("credible", credible, persistent=False)
        self.register_buffer("present", present, persistent=False)
        self.warned = False

    def fetch(self, index, labels, rng):
        count = len(index) if self.present is None else int(self.present[index].sum())
        rows = draw_rows(self.credible[index], self.cfg.mix_ratio, rng, count)
        wanted = int(self.cfg.mix_ratio * count)
        if len(rows) < wanted and not self.warned:
            logging.warning(
                "a batch has %d credible rows, fewer than the %d to replace; using what there is",
                len(rows), wanted,
            )  # fmt: skip
            self.warned = True
        return {"rows": rows, "features": self.old.rows("old_embedding", index[rows])}

    def forward(self, embeddings, batch, head, rng):
        old = batch.old["rows"], batch.old["features"]
        return {"cls": mixbct(embeddings, batch.labels, *old, lambda z, y: head(z, y, rng))}


if __name__ == "__main__":
    main(MixBCT, "configs/demo.py")
