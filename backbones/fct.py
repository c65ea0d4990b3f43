"""FCT's transformation h of stored old embeddings o, with side information z or without, into the
new model's space:

    h(o, z) = M [A(o) ; B(z)]        A: d_o -> 2 d_o -> 2 d_n      M: 4 d_n -> K -> K -> d_n
    h(o)    = M A(o)                 B: d_z -> 2 d_z -> 2 d_n      M: 2 d_n -> K -> K -> d_n

Every layer is linear without bias, batch norm, ReLU; only M's last one is linear with bias and
nothing else. FastFill adds s = u^T h + c, the predicted log-variance of h's error. The published
code writes the same layers as 1x1 convolutions on 1x1 maps; 5,712,000 parameters at d = 128 and
K = 2048.

Sources: Ramanujan et al., CVPR 2022, arXiv 2112.02805; Jaeckle et al., ICLR 2023.
"""

from typing import NamedTuple

import torch
from torch import nn

from bct.errors import BctError


class Transformed(NamedTuple):
    """embedding float32 (B, d_n); log_variance float32 (B,), None without uncertainty."""

    embedding: torch.Tensor
    log_variance: torch.Tensor | None


class Transformation(nn.Module):
    """float (B, d_o + d_z), old embedding and side information in one row -> Transformed.

    Args:
        d_old, d_new, d_side: widths; d_side = 0: no side information.
        hidden: K.
        uncertainty: predict the log-variance, too.
    """

    def __init__(
        self, d_old: int, d_new: int, d_side: int = 0, hidden: int = 2048, uncertainty: bool = False
    ):
        super().__init__()
        self.widths, self.embedding_size = (d_old, d_side), d_new
        self.old = nn.Sequential(_layer(d_old, 2 * d_old), _layer(2 * d_old, 2 * d_new))
        mixed = 2 * d_new
        if d_side:
            self.side = nn.Sequential(_layer(d_side, 2 * d_side), _layer(2 * d_side, 2 * d_new))
            mixed *= 2
        self.mixer = nn.Sequential(
            _layer(mixed, hidden), _layer(hidden, hidden), nn.Linear(hidden, d_new)
        )
        if uncertainty:
            self.uncertainty = nn.Linear(d_new, 1)

    def forward(self, x: torch.Tensor) -> Transformed:
        old, side = x.float().split(self.widths, dim=1)
        mixed = self.old(old)
        if hasattr(self, "side"):
            mixed = torch.cat([mixed, self.side(side)], dim=1)
        embedding = self.mixer(mixed)
        if not hasattr(self, "uncertainty"):
            return Transformed(embedding, None)
        return Transformed(embedding, self.uncertainty(embedding).squeeze(1))


class TransformedOnly(Transformation):
    """The same, giving the embedding (B, d_n) alone, as the other networks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).embedding


def _layer(d_in: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out), nn.ReLU())


def from_state(state: dict[str, torch.Tensor], uncertainty: bool = False) -> nn.Module:
    """The trained transformation of these weights, in eval mode; all sizes are read from them.

    Args:
        state: ours, or one with the published names and shapes.
        uncertainty: give a Transformed instead of the embedding alone.

    Raises:
        BctError: weights of something else.
    """
    state = own_keys(state)
    try:
        d_old, hidden = state["old.0.0.weight"].shape[1], state["mixer.0.0.weight"].shape[0]
        d_side = state["side.0.0.weight"].shape[1] if "side.0.0.weight" in state else 0
        sizes = (d_old, len(state["mixer.2.weight"]), d_side, hidden, "uncertainty.weight" in state)
        for device in ("meta", "cpu"):  # no memory before it is known that they fit
            with torch.device(device):
                model = (Transformation if uncertainty else TransformedOnly)(*sizes)
            model.load_state_dict(state, assign=device == "meta")
    except (KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BctError(
            f"these weights are no transformation of FCT ({reason})",
            "give the model.pt that methods/FCT/train.py has written",
        ) from None
    return model.eval()


def own_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by our names and shapes: the published 1x1 convolutions have (out, in, 1, 1)."""
    return {_our_name(k): v.flatten(1) if v.ndim == 4 else v for k, v in state.items()}


_NAMES = (
    ("p1.", "old."),
    ("p2.", "side."),
    ("mixer.2.conv.", "mixer.2."),
    (".conv.", ".0."),
    (".normalizer.", ".1."),
    ("uncertainty_head.", "uncertainty."),
)


def _our_name(key: str) -> str:
    for published, ours in _NAMES:
        key = key.replace(published, ours)
    return key
