"""PReLU that is also fast on a CPU."""

import torch
from torch import nn


class PReLU(nn.PReLU):
    """nn.PReLU with one slope per channel; same parameters, same result.

    torch's CPU kernel handles a channels_last image in runs of C values, too short to vectorise.
    Here a row of W * C values is one run, with the slopes repeated W times: forward and backward
    together take about a third of the time (bf16, C = 16, 112 x 112).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if x.device.type == "cpu" and x.requires_grad and rows:
            return _RowPReLU.apply(x, self.weight)
        return super().forward(x)


class _RowPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = ctx.shape = x.shape
        slope = weight.to(x.dtype).repeat(width)  # (W * C,)
        ctx.weight_dtype = weight.dtype
        rows = x.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        negative = rows.clamp_max(0)
        ctx.save_for_backward(negative, slope)
        return _as_image(torch.addcmul(rows, negative, slope - 1), x.shape)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        negative, slope = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        rows = grad.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        grad_weight = (rows * negative).sum(0).to(ctx.weight_dtype).view(width, channels).sum(0)
        # -sign(negative) is 1 where the slope applies: rows * (slope there, else 1)
        grad_x = torch.addcmul(rows, negative.sign().mul_(rows), 1 - slope)
        return _as_image(grad_x, ctx.shape), grad_weight


def _as_image(rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(B * H, W * C) -> (B, C, H, W), channels_last in memory."""
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
