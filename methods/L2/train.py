"""L2 and weakened L2: the new embedding of an image stays near its old one.

    loss = w_0 ArcFace(W; f, y) + w_1 mean_i max(|n(o_i) - n(f_i)| - threshold, 0),   n(v) = v / |v|

f_i is the new embedding, o_i the stored old one of the same image, a constant. threshold = 0 is L2,
0.2 the weakened L2, which leaves the new embedding free within a ball.

Paper: a baseline of Liang et al., MixBCT, arXiv 2308.06948.
Needs of the old model: its embeddings of the new model's training set.
Differs from the published code in nothing but that it starts: parity = "published" is the same.
"""

import torch
import torch.nn.functional as F

from bct.method import Method
from bct.train import main


class L2(Method):
    defaults = {  # noqa: RUF012
        "loss_weight": [1.0, 10.0],  # of the classification, of the distance
        "threshold": 0.0,
        "old_embedding": None,  # path; None: it follows from scenario and old_config
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding",)

    def fetch(self, index, labels, rng):
        return {"features": self.old.rows("old_embedding", index)}

    def forward(self, embeddings, batch, head, rng):
        old = F.normalize(batch.old["features"])
        distance = torch.linalg.vector_norm(old - F.normalize(embeddings), dim=1)  # (B,)
        classify, stay = self.cfg.loss_weight
        return {
            "cls": classify * head(embeddings, batch.labels, rng),
            "l2": stay * F.relu(distance - self.cfg.threshold).mean(),
        }


if __name__ == "__main__":
    main(L2, "configs/demo.py")
