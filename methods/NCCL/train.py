"""NCCL: the classification loss + the two consensus terms of loss.py.

Needs of the old model: its embeddings of the new model's training set, with credible = True also
the mask of tools/denoise.py --by entropy: the others then are no positives.
"""

from bct.distributed import world_size
from bct.errors import BctError
from bct.keys import flag, number, text, whole
from bct.method import Method, present
from bct.train import main
from methods.NCCL.loss import NCCLLoss


class NCCL(Method):
    defaults = {  # noqa: RUF012
        "alpha": number(1.0, 0),
        "beta": number(0.01, 0),
        "temperature": number(1.0, above=0),
        "queue_size": whole(8192, least=1),
        "credible": flag(False),  # leave out old embeddings that the old space can't place
        "T": number(0.5, above=0, most=1),  # which: entropy above T ln C
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "credible_by_entropy": text(None),
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding", "credible_by_entropy") if cfg.credible else ("old_embedding",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        check(cfg)
        self.published = cfg.parity == "published"
        sizes = cfg.num_classes, cfg.embedding_size, cfg.queue_size
        self.loss = NCCLLoss(*sizes, cfg.temperature, self.published)
        self.class_sharded = tuple(f"loss.{name}" for name in self.loss.class_sharded)
        mask = old.whole("credible_by_entropy") if cfg.credible else None
        if mask is not None and not mask.any():
            raise BctError(
                f"no old embedding is credible at T = {cfg.T}",
                "raise T, or leave credible=True out",
            )
        self.register_buffer("credible", mask, persistent=False)

    def fetch(self, index, labels, rng):
        features = self.old.rows("old_embedding", index)
        old = {"features": features} | present(self.old, features)
        if self.cfg.credible:
            old["credible"] = self.credible[index]
        return old

    def forward(self, embeddings, batch, head, rng):
        def classify(rows, labels):
            return head.logits(rows, labels) if self.published else head.scale * head.cosines(rows)

        classification = head(embeddings, batch.labels, rng)
        old = batch.old["features"]
        masks = batch.old.get("credible"), batch.old.get("present")
        terms = self.loss(embeddings, batch.labels, old, classify, *masks)
        return {
            "cls": classification,
            "feature": self.cfg.alpha * terms["feature"],
            "class": self.cfg.beta * terms["class"],
        }


def check(cfg) -> None:
    """Raises BctError for settings that can't be."""
    if cfg.queue_size < cfg.batch_size * world_size():
        raise BctError(
            f"queue_size = {cfg.queue_size} does not hold one batch of {world_size()} ranks "
            f"x {cfg.batch_size}",
            f"give at least queue_size={cfg.batch_size * world_size()}",
        )
    if cfg.head != "margin" or cfg.sample_rate < 1:
        raise BctError(
            "NCCL compares the opinions of a whole margin classifier",
            'use head="margin" and sample_rate=1.0',
        )
    if cfg.credible and cfg.parity == "published":
        raise BctError("the published training does not use its filter", "leave credible=True out")


if __name__ == "__main__":
    main(NCCL, "configs/demo.py")
