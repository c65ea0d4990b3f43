"""BT²: the classification loss + lambda_1 new + lambda_3 old + lambda_2 influence, see loss.py.

The teachers o and t see the batch as the student does (teacher = "view") or are stored ("cached").
What is deployed is [c ; the other coordinates], extra_dim + embedding_size wide.

Needs of the old model: its embeddings of the new model's training set and their class means; of the
new model trained alone (new_config): its embeddings of the same set.
Differs from the published code, of which parity = "published" computes what loss.py says and
- stored teachers, of a randomly mirrored (extraction with parity = "published") or cropped image
  that is not the one the student sees; ours are not cropped;
- rotations by the matrix exponential, see backbones/basis.py.
"""

import torch

from backbones import basis, get_model
from bct.errors import BctError
from bct.keys import choice, number, text, whole
from bct.method import Method
from bct.train import main
from methods.BT2.loss import bt2

TEACHERS = ("old_embedding", "new_embedding")


class BT2(Method):
    dimensions = ("leading",)
    defaults = {  # noqa: RUF012
        "extra_dim": whole(32, most=65536),  # a
        # length of f's part of the embedding; that of the extra coordinates is 1
        "C": number(2.0, above=0),
        "lambda_1": number(1.0, 0),
        "lambda_2": number(10.0, 0),
        "lambda_3": number(5.0, 0),
        "prototype_scale": number(16.0, above=0),  # s
        "teacher": choice(None, "view", "cached"),  # None: as parity has it
        # paths; None: they follow from scenario, old_config and new_config
        "old_embedding": text(None),
        "new_embedding": text(None),
        "old_prototype": text(None),
        "class_statistics": text(None),
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

    @staticmethod
    def classified(output):
        return output.new

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        published = cfg.parity == "published"
        self.teacher = cfg.teacher or ("cached" if published else "view")
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
        """(B, d_old) of the old model and (B, d) of the new one trained alone."""
        if self.teacher == "cached":
            return [batch.old[kind] for kind in TEACHERS]
        return [network(batch.images) for network in self.networks]

    def forward(self, embeddings, batch, head, rng):
        cfg, new, compatible = self.cfg, embeddings.new, embeddings.compatible
        given = *self.teachers(batch), self.prototypes, self.scale
        classification = head(new, batch.labels, rng)
        terms = bt2(new, compatible, batch.labels, *given)
        return {
            "cls": classification,
            "new": cfg.lambda_1 * terms["new"],
            "old": cfg.lambda_3 * terms["old"],
            "influence": cfg.lambda_2 * terms["influence"],
        }


if __name__ == "__main__":
    main(BT2, "configs/demo.py")
