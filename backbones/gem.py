"""Generalised-mean pooling."""

import torch
from torch import nn

_SMALLEST = 1e-6  # what smaller values count as


class GeM(nn.Module):
    """Generalised mean of each channel over a map (Radenovic et al., TPAMI 2019).

        out = (mean_hw max(x, 1e-6)^p)^(1/p)

    p = 1 is the mean, p towards infinity the maximum.

    Args:
        p: the exponent, above 0.
        learnt: train p, which then is a parameter p (1,) and in the state_dict. Values below 1e-3
            count as 1e-3.

    Input (B, C, H, W), output (B, C) float32, also under autocast: a cube leaves fp16.
    """

    def __init__(self, p: float = 3.0, learnt: bool = False):
        super().__init__()
        self.p: float | nn.Parameter = nn.Parameter(torch.tensor([float(p)])) if learnt else p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = (x if x.dtype == torch.float64 else x.float()).clamp(min=_SMALLEST)
            p = self.p.clamp(min=1e-3) if torch.is_tensor(self.p) else self.p
            return x.pow(p).mean((2, 3)).pow(1 / p)
