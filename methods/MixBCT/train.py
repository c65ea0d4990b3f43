"""MixBCT: old embeddings as additional training samples of the new classifier.

    z_i  = n(o_i)  for int(mix_ratio * B) rows of the batch, drawn among the credible ones
           f_i     for the others
    loss = ArcFace(W; z, y),        n(v) = v / |v|

f_i is the new embedding and o_i the stored old one of the same image. The old rows are constants:
they pull the class centres W, and through these the new embeddings, into the old space. An old
embedding is credible when it is among the T * n nearest to the mean of its class.

Paper: Liang et al., MixBCT: Towards Self-Adapting Backward-Compatible Training, arXiv 2308.06948.
Needs of the old model: its embeddings and the credible mask, of the new model's training set.
Differs from the published code: the rows come from a seeded stream, only their old embeddings are
read, and a batch with too few credible rows uses those it has. The arithmetic is the same, so
parity = "published" changes nothing here (it does in tools/extract_features.py).
"""

import logging

import torch
import torch.nn.functional as F

from bct.method import Method
from bct.train import main


class MixBCT(Method):
    defaults = {  # noqa: RUF012
        "mix_ratio": 0.3,  # share of the batch that becomes old embeddings
        "T": 0.9,  # share of each class's old embeddings that is credible
        "old_embedding": None,  # paths; None: they follow from scenario and old_config
        "credible_old_feature": None,
    }

    @classmethod
    def needs(cls, cfg):
        return "old_embedding", "credible_old_feature"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        self.register_buffer("credible", old.whole("credible_old_feature"), persistent=False)
        self.warned = False

    def fetch(self, index, labels, rng):
        draw = torch.rand(len(index), generator=rng, device=index.device)
        draw = draw.where(self.credible[index], -1.0)
        top = draw.topk(int(self.cfg.mix_ratio * len(index)))
        rows = top.indices[top.values >= 0]
        if len(rows) < len(top.indices) and not self.warned:
            logging.warning(
                "a batch has %d credible rows, fewer than the %d to replace; using what there is",
                len(rows), len(top.indices),
            )  # fmt: skip
            self.warned = True
        return {"rows": rows, "features": self.old.rows("old_embedding", index[rows])}

    def forward(self, embeddings, batch, head, rng):
        mixed = embeddings.index_copy(0, batch.old["rows"], F.normalize(batch.old["features"]))
        return {"cls": head(mixed, batch.labels, rng)}


if __name__ == "__main__":
    main(MixBCT, "configs/demo.py")
