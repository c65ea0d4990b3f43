"""AdvBCT: the classification loss + the balls and the adversary of loss.py.

reading = "mixbct" is the port that MixBCT's authors train on faces, "advbct" AdvBCT's own code:
threshold 1, weights 1, and published a discriminator of embeddings of any length. boundary =
"old_distance" is its code's variant without balls. Classes that the old model has not seen take
part like the others (unseen = "synthesise") or have no ball ("ignore"), as in AdvBCT's own code.

Needs of the old model: embeddings and class statistics of the new model's training set.
"""

from bct.distributed import say, world_size
from bct.errors import BctError
from bct.keys import choice, flag, number, text, whole
from bct.method import Method, present
from bct.train import main
from bct.training.pairwise import refuse_few
from methods.AdvBCT.loss import AdvBCTLoss

SETTINGS = {"mixbct": (0.4, 4.0), "advbct": (1.0, 1.0)}  # threshold, weight


class AdvBCT(Method):
    defaults = {  # noqa: RUF012
        "reading": choice("mixbct", "advbct"),
        "threshold": number(None, 0),  # None: the reading's
        "adv_weight": number(None, 0),  # of p2s and of adv
        "boundary": choice("elastic", "fixed", "old_distance"),
        "adversarial": flag(True),
        "hidden": whole(100, least=1, most=65536),  # width of the discriminator
        "temperature": number(0.01, above=0),  # of old_distance's contrast
        "topk": whole(10, least=-1),  # its negatives of each kind and image; -1: all
        "unseen": choice("synthesise", "ignore"),  # classes the old model has not seen
        "old_embedding": text(None),  # paths; None: they follow from scenario and old_config
        "class_statistics": text(None),
    }

    @classmethod
    def needs(cls, cfg):
        used = cfg.adversarial or cfg.boundary == "old_distance"
        return ("old_embedding", "class_statistics") if used else ("class_statistics",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.parity == "corrected" or "old_embedding" not in cls.needs(cfg)

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        published, table = cfg.parity == "published", old.table("class_statistics")
        kept, least = table["kept"], 2
        if cfg.boundary != "old_distance" and table["radius"].isnan().any():
            raise BctError(
                "the class statistics were imported without radii",
                "import AdvBCT's file ..._meta_radius_..., too, with --overwrite",
            )
        if cfg.boundary == "old_distance":
            kept, least = table["count"], 1
            if published:
                refuse_few(cfg.topk, cfg.batch_size * world_size())
        if cfg.unseen == "ignore":
            kept = kept.where(old.new_to_old() >= 0, 0)
        undefined = int((kept < least).sum())
        if undefined == cfg.num_classes:
            raise BctError(
                "no class has two images, so no class has a radius", "use data with more images"
            )
        if undefined and least == 2:
            why = "one image or none" + ", or are new to the old model" * (cfg.unseen == "ignore")
            say(f"{undefined} of {cfg.num_classes} classes have {why}: no radius and no p2s")
        given = zip((cfg.threshold, cfg.adv_weight), SETTINGS[cfg.reading], strict=True)
        settings = [default if own is None else own for own, default in given]
        self.loss = AdvBCTLoss(
            table["centre"],
            table["radius"],
            kept,
            *settings,
            cfg.hidden,
            published,
            boundary=cfg.boundary,
            smallest=table["smallest_radius"],
            adversarial=cfg.adversarial,
            raw=published and cfg.reading == "advbct",
            temperature=cfg.temperature,
            topk=cfg.topk,
        )

    def undecayed(self):
        elastic = self.cfg.boundary == "elastic"
        return [self.loss.boundary] if elastic and self.cfg.parity == "corrected" else []

    def fetch(self, index, labels, rng):
        if "old_embedding" not in self.needs(self.cfg):
            return {}
        features = self.old.rows("old_embedding", index)
        return {"features": features} | present(self.old, features)

    def forward(self, embeddings, batch, head, rng):
        f, old, progress = embeddings.float(), batch.old, (batch.epoch, self.cfg.num_epoch)
        features = old.get("features", f.detach())  # of the ball alone, unused
        terms = self.loss(f, batch.labels, features, *progress, old.get("present"))
        return {"cls": head(embeddings, batch.labels, rng), **terms}


if __name__ == "__main__":
    main(AdvBCT, "configs/demo.py")
