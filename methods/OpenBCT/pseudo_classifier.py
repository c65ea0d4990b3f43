"""The old classifier, with rows made of class means where it has none.

    row of class c = mean over its images i of n(o_i), with normalise n of that;   n(v) = v / |v|

o_i is the old embedding of image i of the new training set. A made row has bias 0. A class without
images gets no row and is nobody's label; published, its row is 0.

Paper: Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, sec. 3.3.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict

from bct.errors import BctError
from bct.old_model import OldModel
from bct.rows import BLOCK
from bct.stored.class_statistics import class_sums

Classifier = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


def old_classifier(cfg: EasyDict, old: OldModel) -> Classifier:
    """weight float32 (K, d_o), bias (K,) or None, and each new class's row, int64 (C,), -1: none.

    cfg.fill says whose rows: "off", the old model's; "missing", its and made ones for new classes
    that it lacks; "all", made ones.

    Raises BctError for a classifier that does not fit the old embeddings or the map of classes, and
    when no class would have a row.
    """
    own = torch.empty(0, old.dim), None, torch.full((cfg.num_classes,), -1)
    if cfg.fill != "all":
        own = *old.classifier(), old.new_to_old()
        shape, last = tuple(own[0].shape), int(own[2].max())
        if shape[1] != old.dim or last >= shape[0] or (cfg.fill == "off" and last < 0):
            raise BctError(
                f"the old classifier is {shape}, old embeddings have {old.dim} dimensions, and new "
                f"classes have old labels up to {last}",
                'mend the old model or n2o_map, or use fill="all", which needs neither',
            )
    if cfg.fill == "off":
        return own
    labels = old.whole("old_embedding_label")
    blocks = torch.arange(len(labels)).split(BLOCK)
    pieces = ((old.rows("old_embedding", i).numpy(), labels[i].numpy()) for i in blocks)
    rows, filled = class_rows(pieces, cfg.num_classes, old.dim, cfg.normalise)
    return complete(*own, rows, torch.ones_like(filled) if cfg.parity == "published" else filled)


def class_rows(
    pieces: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, dim: int, normalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every class's row, float32 (C, d_o), 0 for one without images, and which have some, (C,).

    Args:
        pieces: of the training set: float32 embeddings (b, d_o) and int64 labels (b,).
        dim: d_o.
    """
    sums = torch.zeros(num_classes, dim, dtype=torch.float64)
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for features, labels in pieces:
        classes, rank = np.unique(labels, return_inverse=True)
        part, found = class_sums(features, rank, unit=True)
        sums[classes] += part
        counts[classes] += found
    rows = sums / counts.clamp_min(1)[:, None]
    return (F.normalize(rows) if normalise else rows).float(), counts > 0


def complete(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_of_class: torch.Tensor,
    rows: torch.Tensor,
    filled: torch.Tensor,
) -> Classifier:
    """Appends rows (C, d_o) of the new classes that have none and are filled, bool (C,)."""
    missing = (row_of_class < 0) & filled
    count = int(missing.sum())
    row_of_class = row_of_class.clone()
    row_of_class[missing] = torch.arange(len(weight), len(weight) + count)
    if bias is not None:
        bias = torch.cat((bias, bias.new_zeros(count)))
    return torch.cat((weight, rows[missing])), bias, row_of_class
