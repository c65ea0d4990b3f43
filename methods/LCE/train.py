"""LCE: the classification loss + the boundary and the alignment of loss.py.

reading = "advbct" is what AdvBCT's code compares itself with, "lce" the code of LCE's own paper.
Classes that the old model has not seen take part like the others (unseen = "synthesise"), as in
LCE's own code, or not ("ignore"), as in AdvBCT's.

Needs of the old model: class statistics of its embeddings of the new model's training set.
"""

import torch
import torch.nn.functional as F

from bct.errors import BctError
from bct.keys import choice, number, text
from bct.method import Method
from bct.train import main
from bct.training.class_rows import all_rows, over_ranks, rows_of_labels
from bct.training.replicas import bare
from methods.LCE.loss import alignment, angle_boundary, cosine_boundary, shares

WEIGHTS = {"advbct": (1.0, 1.0), "lce": (1.0, 100.0)}  # of the boundary, of the alignment


class LCE(Method):
    defaults = {  # noqa: RUF012
        "reading": choice("advbct", "lce"),
        "boundary_weight": number(None, 0),  # None: the reading's
        "align_weight": number(None, 0),
        "unseen": choice("synthesise", "ignore"),  # classes the old model has not seen
        "class_statistics": text(None),  # path; None: it follows from scenario and old_config
    }

    @classmethod
    def needs(cls, cfg):
        return ("class_statistics",)

    @classmethod
    def takes_a_part(cls, cfg):
        return cfg.reading == "advbct" or cfg.parity == "corrected"

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        check(cfg)
        self.published = cfg.parity == "published"
        given = zip((cfg.boundary_weight, cfg.align_weight), WEIGHTS[cfg.reading], strict=True)
        self.weights = [default if own is None else own for own, default in given]
        table = old.table("class_statistics", "cosine", "kept_angles")
        centres = F.normalize(table["centre"])
        known = table["count"] > 0
        if cfg.unseen == "ignore":
            known &= old.new_to_old() >= 0
        if cfg.reading == "advbct":
            limit, bounded = table["angle"], known & (table["kept_angles"] > 1)
            aligned = bounded if self.published else known
        else:
            limit, bounded, aligned = table["cosine"], known & table["cosine"].isfinite(), known
        if not bounded.any():
            word = "angles" if cfg.reading == "advbct" else "smallest cosines"
            raise BctError(
                f"the class statistics have {word} of none of the {cfg.num_classes} classes",
                "use an old model, or files of one, that knows several images of them"
                + (', or unseen="synthesise"' if cfg.unseen == "ignore" else ""),
            )
        parts = {"centres": centres, "limit": limit.nan_to_num(), "bounded": bounded}
        for name, value in (parts | {"aligned": aligned}).items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, embeddings, batch, head, rng):
        cls = head(embeddings, batch.labels, rng)
        boundary = cosine_boundary if self.cfg.reading == "lce" else angle_boundary
        old = self.centres, self.limit, self.bounded[batch.labels]
        boundary = boundary(embeddings.float(), batch.labels, *old, self.published)
        align = self.alignment(bare(head), batch.labels)
        bound_weight, align_weight = self.weights
        return {"cls": cls, "boundary": bound_weight * boundary, "align": align_weight * align}

    def alignment(self, head: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
        """Of all classes, or of those of the batch's images."""
        if self.cfg.reading == "lce":
            rows, classes = all_rows(head)
            numbers = self.centres.shape[1] * self.aligned.sum()
            weight = 2 * self.aligned[classes].double() / numbers
        else:
            weight = shares(self.aligned[labels], self.published)
            rows, classes, weight = rows_of_labels(head, labels, weight)
        return over_ranks(head, alignment(rows, self.centres[classes], weight))


def check(cfg) -> None:
    """Raises BctError for a head without rows to align."""
    if cfg.head == "none":
        raise BctError(
            'LCE aligns the rows of a classifier, and the config says head="none"',
            'set head="softmax" or head="margin"',
        )


if __name__ == "__main__":
    main(LCE, "configs/demo.py")
