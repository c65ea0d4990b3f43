"""Hot refresh: the classification loss + weight * the comparison of loss.py.

loss = "contra_ract" is RACT, what AdvBCT's code calls hot_refresh.

Needs of the old model: its embeddings of the new model's training set.
"""

from bct.distributed import world_size
from bct.errors import BctError
from bct.keys import choice, number, text, whole
from bct.method import Method, present
from bct.train import main
from bct.training.pairwise import refuse_few
from methods.HotRefresh.loss import LOSSES, hot_refresh


class HotRefresh(Method):
    defaults = {  # noqa: RUF012
        "loss": choice(*LOSSES),
        "temperature": number(0.01, above=0),  # of the contrasts
        "margin": number(0.8, 0),  # of the triplets
        "topk": whole(10, least=-1),  # negatives of each kind and image; -1: all
        "weight": number(1.0, 0),
        "old_embedding": text(None),  # path; None: it follows from scenario and old_config
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        check(cfg)

    def fetch(self, index, labels, rng):
        features = self.old.rows("old_embedding", index)
        return {"features": features} | present(self.old, features)

    def forward(self, embeddings, batch, head, rng):
        cfg, old = self.cfg, batch.old
        term = hot_refresh(
            embeddings.float(),
            batch.labels,
            old["features"],
            cfg.loss,
            cfg.temperature,
            cfg.topk,
            cfg.margin,
            cfg.parity == "published",
            old.get("present"),
        )
        return {"cls": head(embeddings, batch.labels, rng), "pairs": cfg.weight * term}


def check(cfg) -> None:
    """Raises BctError for settings with which the published code would end."""
    if cfg.parity != "published":
        return
    refuse_few(cfg.topk, cfg.batch_size * world_size())
    if cfg.topk <= 0 and cfg.loss.startswith("triplet"):
        raise BctError(
            "the published triplets need the number of negatives",
            'set topk, or parity="corrected"',
        )


if __name__ == "__main__":
    main(HotRefresh, "configs/demo.py")
