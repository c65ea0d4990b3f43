"""The old model's word on which class an embedding is of: its own classifier, or class means.

    own classifier   z = W f + b,  of n(f) for f if it was trained so (head_unit),  n(v) = v / |v|
    class means      z = s n(f) . n(m_c),  m_c the mean of class c's old embeddings

Class means know every class of the new training set that has an old embedding, an old classifier
those that the old model was trained on.
"""

import logging

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import nn

from bct.errors import BctError
from bct.keys import Key, choice, number, text
from bct.old_model import OldModel

# what a method with a judge has among its keys
JUDGE_KEYS: dict[str, Key] = {
    # None: the old model's own classifier where there is one that knows a new class, else class
    # means, "prototype"
    "influence": choice(None, "old_classifier", "prototype"),
    "influence_scale": number(64.0, above=0),  # s
    "old_prototype": text(None),  # path; None: it follows from scenario and old_config
}


class OldJudge(nn.Module):
    """Logits of embeddings by the old model; a constant, which no checkpoint holds.

    Args:
        weight: float32 (K, D); bias: (K,) or None.
        row: int64 (C,), the row of each new class in weight, -1: none.
        unit: it was trained on embeddings of length 1.
        scale: s of class means; None: it is a classifier.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        row: torch.Tensor,
        unit: bool = False,
        scale: float | None = None,
    ):
        super().__init__()
        self.unit, self.scale = unit, scale
        weight = weight if scale is None else F.normalize(weight)
        for name, value in (("weight", weight), ("bias", bias), ("row", row)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """z (B, K) of float32 embeddings (B, D), old or new."""
        if self.scale is not None:
            return self.scale * F.normalize(embeddings) @ self.weight.t()
        features = F.normalize(embeddings) if self.unit else embeddings
        return F.linear(features, self.weight, self.bias)


def old_judge(cfg: EasyDict, old: OldModel) -> OldJudge:
    """The judge that a config asks for by JUDGE_KEYS; the method needs old_prototype.

    Raises BctError when the old classifier is asked for and there is none, or none that knows one
    of the new classes.
    """
    if cfg.influence == "old_classifier":
        return _own_classifier(cfg, old)
    if cfg.influence is None:
        try:
            return _own_classifier(cfg, old)
        except BctError as error:
            logging.info("class means of old embeddings judge in its place: %s", error.what)
    means = old.whole("old_prototype")
    known = means.any(1)  # others: classes of which no image has an old embedding
    row = (known.cumsum(0) - 1).where(known, -1)
    return OldJudge(means[known], None, row, scale=cfg.influence_scale)


def _own_classifier(cfg: EasyDict, old: OldModel) -> OldJudge:
    weight, bias = old.classifier()
    row = old.new_to_old()
    if (row < 0).all():
        raise BctError(
            "the old model has seen none of the new classes",
            'use influence="prototype", which takes class means of its embeddings',
        )
    if weight.shape[1] != cfg.embedding_size:
        raise BctError(
            f"the old classifier is of {weight.shape[1]} dimensions, new embeddings have "
            f"{cfg.embedding_size}",
            f'set embedding_size={weight.shape[1]}, or influence="prototype"',
        )
    return OldJudge(weight, bias, row, old.classifies_unit())
