"""BT²'s network: an embedding whose first coordinates are an old model's, and which loses nothing.

    h = body(x)                       (d + d_old,)
    f = n(h[:d])                      the new embedding
    g = n(F relu(h) + b)              (a,)  what the old space needs and f lacks
    u = [g ; C P f]                   (a + d,)
    c = Q u[:d_old]                   compatible with the old embedding
    embedding = [c ; u[d_old:]]       n(v) = v / |v|,  P and Q orthogonal

P and Q only turn, so |embedding|^2 = 1 + C^2 and

    <embedding(x), embedding(y)> = <g(x), g(y)> + C^2 <f(x), f(y)> :

among new embeddings they change nothing; they choose what enters the compatible coordinates.

Paper: Zhou et al., BT²: Backward-compatible Training with Basis Transformation, ICCV 2023.
Differs from the published code, whose function it is, in this:
- F has a rows there cut from d_old: the row normalised is normalised again after the cut, so the
  first length cancels and the rows below a never had a gradient;
- widths where u[d_old:] is empty or P is never trained are refused; there u[-0:] is all of u;
- rotations default to Cayley's map. Near the start it moves as the exponential does, to second
  order, in a quarter of the time, and is orthogonal to 1e-6 in float32 instead of 1e-5.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from backbones import get_model
from bct.errors import BctError


class Features(NamedTuple):
    """embedding float32 (B, a + d); new (B, d), of unit length; compatible (B, d_old), the first
    coordinates of the embedding, as long as they come."""

    embedding: torch.Tensor
    new: torch.Tensor
    compatible: torch.Tensor


def check(d: int, d_old: int, a: int) -> None:
    """Raises BctError for widths with which u[d_old:] is empty, or all of C P f is in it."""
    low, high = max(d_old - d + 1, 1), d_old - 1
    if not low <= a <= high:
        raise BctError(
            f"{a} extra coordinates beside {d} new ones do not fit old embeddings of {d_old}",
            f"set extra_dim from {low} to {high}" if low <= high else "set a larger embedding_size",
        )


class BasisNetwork(nn.Module):
    """The network while it is trained; `exported` is what is deployed, see from_state.

    Args:
        body: images -> float32 (B, d + d_old).
        d: width of the new embedding; d_old: of the old one.
        a: extra coordinates; d_old - d < a < d_old.
        C: length of the new embedding beside the extra coordinates' 1.
        rotation: torch's map from skew-symmetric matrices to rotations, "cayley", "matrix_exp" (the
            published one), "householder"; None: P and Q are plain matrices.

    Attributes:
        embedding_size: a + d.

    Raises:
        BctError: see check.
    """

    def __init__(
        self,
        body: nn.Module,
        d: int,
        d_old: int,
        a: int,
        C: float = 2.0,
        rotation: str | None = "cayley",
    ):
        super().__init__()
        check(d, d_old, a)
        self.d, self.d_old, self.embedding_size = d, d_old, a + d
        self.body = body
        self.old_branch = nn.Linear(d + d_old, a)  # F, b
        self.P = nn.Linear(d, d, bias=False)
        self.Q = nn.Linear(d_old, d_old, bias=False)
        self.register_buffer("C", torch.tensor(float(C)))
        if rotation is not None:
            for layer in (self.P, self.Q):
                orthogonal(layer, orthogonal_map=rotation)

    def forward(self, images: torch.Tensor) -> Features:
        h = self.body(images)  # (B, d + d_old)
        f = F.normalize(h[:, : self.d])
        g = F.normalize(self.old_branch(F.relu(h)))  # (B, a)
        u = torch.cat((g, self.P(self.C * f)), 1)  # (B, a + d)
        compatible = self.Q(u[:, : self.d_old])
        return Features(torch.cat((compatible, u[:, self.d_old :]), 1), f, compatible)

    def undecayed(self) -> list[nn.Parameter]:
        """The rotations: weight decay would turn them back to where they began."""
        return [*self.P.parameters(), *self.Q.parameters()]

    def exported(self) -> tuple[str, dict[str, torch.Tensor]]:
        """("+basis", a state_dict in which P and Q are plain matrices), see from_state."""
        state = {k: v for k, v in self.state_dict().items() if ".parametrizations." not in k}
        for name in ("P", "Q"):
            # in double: a training in mixed precision lets float32 products round their inputs
            exact = copy.deepcopy(getattr(self, name)).double()
            state[f"{name}.weight"] = exact.weight.detach().float()
        return "+basis", state


class _Deployed(BasisNetwork):
    """images -> float32 (B, a + d)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).embedding


def from_state(
    body_name: str, state: dict[str, torch.Tensor], amp_dtype: torch.dtype | None = None
) -> nn.Module:
    """The deployed network, in eval mode: images -> float32 (B, a + d).

    Args:
        body_name: the body's network, without "+basis".
        state: P.weight (d, d), Q.weight (d_old, d_old), old_branch.weight (a, d + d_old),
            old_branch.bias (a,), C (), and the body's own under "body.".
        amp_dtype: see get_model.

    Raises:
        BctError: a state of another form, or of another body.
    """
    try:
        d, d_old = len(state["P.weight"]), len(state["Q.weight"])
        a, C = len(state["old_branch.bias"]), state["C"].item()
    except (KeyError, TypeError, RuntimeError):
        raise BctError(
            f"the weights are not those of a {body_name}+basis network",
            "name the network they were trained with",
        ) from None
    for device in ("meta", "cpu"):  # a few bytes can name any network: no memory before they fit
        with torch.device(device):
            body = get_model(body_name, d + d_old, amp_dtype)
            network = _Deployed(body, d, d_old, a, C, rotation=None)
        try:
            network.load_state_dict(state, assign=device == "meta")
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise BctError(
                f"the weights do not fit network {body_name}+basis ({reason})",
                "name the network they were trained with",
            ) from None
    return network.eval()
