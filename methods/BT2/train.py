"""BT²: an embedding with extra coordinates, turned so that its first ones are an old embedding's.

    loss = CE(W f, y) + lambda_1 mean_i (1 - <n(t_i), f_i>) + lambda_3 mean_i (1 - <n(o_i), n(c_i)>)
           - lambda_2 mean_i log softmax_y( s <n(c_i), p_k> ),            n(v) = v / |v|

f_i, of unit length, and c_i are the new embedding of an image and its compatible coordinates, see
backbones/basis.py. o_i is the old model's embedding of the same image, t_i that of a new model
trained alone, p_k the normalised mean of class k's old embeddings; all are constants. The teachers
o and t see the batch as the student does (teacher = "view") or are stored ("cached"). What is
deployed is [c ; the other coordinates], extra_dim + embedding_size wide.

Paper: Zhou et al., BT²: Backward-compatible Training with Basis Transformation, ICCV 2023.
Needs of the old model: its embeddings of the new model's training set and their class means; of the
new model trained alone (new_config): its embeddings of the same set.
Differs from the published code, of which parity = "published" computes
- p_k as the plain mean of class k's unit embeddings and s = 1: over 1000 classes the term can only
  move between 6.91 and 5.91, and it is 10 of the 11 parts of classification;
- stored teachers, of a randomly mirrored (extraction with parity = "published") or cropped image
  that is not the one the student sees; ours are not cropped;
- rotations by the matrix exponential, see backbones/basis.py.
Teachers are normalised in both; published, the old one of a second step has length sqrt(1 + C^2).
"""

import torch
import torch.nn.functional as F

from backbones import basis, get_model
from bct.errors import BctError
from bct.method import Method
from bct.train import main

TEACHERS = ("old_embedding", "new_embedding")


class BT2(Method):
    dimensions = ("leading",)
    defaults = {  # noqa: RUF012
        "extra_dim": 32,  # a
        "C": 2.0,  # length of f's part of the embedding; that of the extra coordinates is 1
        "lambda_1": 1.0,
        "lambda_2": 10.0,
        "lambda_3": 5.0,
        "prototype_scale": 16.0,  # s
        "teacher": None,  # "view" or "cached"; None: as parity has it
        "old_embedding": None,  # paths; None: they follow from scenario, old_config and new_config
        "new_embedding": None,
        "old_prototype": None,
        "class_statistics": None,
        "head": "softmax",
        "head_bias": False,
        "dimensions": "leading",
    }

    @classmethod
    def needs(cls, cfg):
        published = cfg.parity == "published"
        return *TEACHERS, "class_statistics" if published else "old_prototype"

    @classmethod
    def output_width(cls, cfg, old):
        return cfg.extra_dim + cfg.embedding_size

    @classmethod
    def check_dimensions(cls, cfg, old):
        basis.check(cfg.embedding_size, old, cfg.extra_dim)
        super().check_dimensions(cfg, old)

    @classmethod
    def backbone(cls, cfg, old, dtype):
        body = get_model(cfg.network, cfg.embedding_size + old.dim, dtype)
        rotation = "matrix_exp" if cfg.parity == "published" else "cayley"
        widths = cfg.embedding_size, old.dim, cfg.extra_dim
        return basis.BasisNetwork(body, *widths, cfg.C, rotation)

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        published = cfg.parity == "published"
        self.teacher = cfg.teacher or ("cached" if published else "view")
        if self.teacher not in ("view", "cached"):
            raise BctError(f"teacher = {self.teacher!r}", "choose from view, cached")
        new_model = old.manifests["new_embedding"]
        if new_model["dim"] != cfg.embedding_size:
            raise BctError(
                f"the new model's embeddings have {new_model['dim']} dimensions, embedding_size is "
                f"{cfg.embedding_size}",
                f"set embedding_size={new_model['dim']}",
            )
        if published:
            prototypes, self.scale = old.table("class_statistics")["centre"], 1.0
        else:
            prototypes, self.scale = old.whole("old_prototype"), cfg.prototype_scale
        self.register_buffer("prototypes", prototypes, persistent=False)  # (C, d_old)
        self.networks = []
        if self.teacher == "view":
            self.networks = [old.network(kind) for kind in TEACHERS]

    def fetch(self, index, labels, rng):
        if self.teacher == "view":
            return {}
        return {kind: self.old.rows(kind, index) for kind in TEACHERS}

    def teachers(self, batch) -> list[torch.Tensor]:
        """(B, d_old) of the old model and (B, d) of the new one trained alone, unit rows."""
        if self.teacher == "cached":
            return [F.normalize(batch.old[kind]) for kind in TEACHERS]
        return [F.normalize(network(batch.images)) for network in self.networks]

    def forward(self, embeddings, batch, head, rng):
        cfg, f, compatible = self.cfg, embeddings.new, F.normalize(embeddings.compatible)
        old, new = self.teachers(batch)
        logits = self.scale * compatible @ self.prototypes.t()  # (B, C)
        return {
            "cls": head(f, batch.labels, rng),
            "new": cfg.lambda_1 * (1 - (new * f).sum(1).mean()),
            "old": cfg.lambda_3 * (1 - (old * compatible).sum(1).mean()),
            "influence": cfg.lambda_2 * F.cross_entropy(logits, batch.labels),
        }


if __name__ == "__main__":
    main(BT2, "configs/demo.py")
