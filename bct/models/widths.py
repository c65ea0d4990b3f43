"""How embeddings of two widths meet: the new model's d_n and the old model's d_o.

    equal       d_n = d_o; anything else is an error
    leading     d_n >= d_o: the first d_o coordinates of the new embedding
    zero_pad    d_n <= d_o: the new embedding, then zeros

The last two are openBCT's. Whoever compares by cosine normalises after this, not before.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bct.errors import BctError

POLICIES = ("equal", "leading", "zero_pad")


def check(new: int, old: int, policy: str) -> None:
    """Raises BctError when the policy can't bring these widths together."""
    if {"equal": new == old, "leading": new >= old, "zero_pad": new <= old}[policy]:
        return
    fitting = "leading" if new > old else "zero_pad"
    raise BctError(
        f"new embeddings have {new} dimensions, old ones {old}: dimensions={policy!r} can't match",
        f"set embedding_size={old}, or dimensions={fitting!r} where the method allows it",
    )


def fit(new: torch.Tensor, old: int, policy: str) -> torch.Tensor:
    """Brings new embeddings (B, d_n) to the old width: (B, d_o). Raises BctError like check."""
    check(new.shape[1], old, policy)
    return new[:, :old] if new.shape[1] >= old else F.pad(new, (0, old - new.shape[1]))


def check_meet(policy: str, *widths: int) -> None:
    """Raises BctError for widths that differ where the policy is "equal"."""
    if policy == "equal" and len(set(widths)) > 1:
        raise BctError(
            f"embeddings to be compared have {' and '.join(map(str, widths))} dimensions",
            "say how they meet: --dimensions leading or zero_pad",
        )


def same_width(policy: str, *sides: np.ndarray) -> list[np.ndarray]:
    """Embeddings (n, D), cut ("leading") or filled with zeros ("zero_pad") to one D.

    Whoever compares by cosine normalises afterwards, as bct.metrics.retrieval does. BctError for
    "equal" if they differ.
    """
    widths = [x.shape[1] for x in sides]
    check_meet(policy, *widths)
    if len(set(widths)) == 1:
        return list(sides)
    if policy == "leading":
        return [x[:, : min(widths)] for x in sides]
    return [np.pad(x, ((0, 0), (0, max(widths) - x.shape[1]))) for x in sides]
