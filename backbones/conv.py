"""3 x 3 convolutions with fewer multiplications on a CPU: Winograd's F(4 x 4, 3 x 3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): 4 x 4 outputs are
made of 6 x 6 inputs by 36 products per pair of channels, not 144, as A' ((G w) * (B x)) with the
matrices below. The same sum in another order: it differs from torch's by about 1e-5 of the largest
value. All the work is in matrix products.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

_TILES = 256  # tiles per round: what a round holds (36 floats per tile and channel) stays in cache
_CHANNELS, _ENOUGH = 64, 64  # with fewer channels or tiles the transforms cost more than they save
_B = torch.tensor(  # (6, 6): points 0, 1, -1, 2, -2 and infinity
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = torch.tensor(  # (6, 3)
    [[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
) / 24  # fmt: skip
_A = torch.tensor(  # (4, 6), A'
    [[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


class Conv2d(nn.Conv2d):
    """nn.Conv2d, whose 3 x 3 convolutions train faster in fp32 on a CPU.

    torch's gradient of a channels_last weight runs at a third to half of the rate of the forward
    pass; these take a third of its time with stride 1, half with stride 2. From 64 x 128 channels
    on, with stride 1, the output and the input's gradient take about two thirds. Without gradient
    it is nn.Conv2d, until `transform` is set: the plain network is what the fast one is held
    against, and what is exported.
    """

    transform = False  # of a network that only infers: see backbones.inference

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = torch.is_grad_enabled() and self.weight.requires_grad
        if training and self._fits(x) and self.bias is None:
            return _Conv.apply(x, self.weight, self.stride[0])
        fast = self.transform and not training and _pays(self.weight, self.stride[0])
        if fast and self._fits(x):
            return winograd(x, self.weight, self.bias)
        return super().forward(x)

    def _fits(self, x: torch.Tensor) -> bool:
        shape = self.kernel_size, self.padding, self.dilation, self.groups
        return (
            shape == ((3, 3), (1, 1), (1, 1), 1)
            and self.stride in ((1, 1), (2, 2))
            and min(self.in_channels, self.out_channels) >= _CHANNELS
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and x.is_contiguous(memory_format=torch.channels_last)
            and len(x) * _tiles(x.shape[2]) * _tiles(x.shape[3]) >= _ENOUGH
        )


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        if _pays(weight, stride):
            return winograd(x, weight)
        return F.conv2d(x, weight, None, stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0] and _pays(weight, ctx.stride):
            grad_x = winograd(grad, weight.flip(2, 3).transpose(0, 1))
        elif ctx.needs_input_grad[0]:
            grad_x = nn.grad.conv2d_input(x.shape, weight, grad, ctx.stride, padding=1)
        if ctx.needs_input_grad[1]:
            way = winograd_weight_grad if ctx.stride == 1 else strided_weight_grad
            grad_weight = way(x, grad)
        return grad_x, grad_weight, None


def _pays(weight: torch.Tensor, stride: int) -> bool:
    """Whether the transforms pay forward, too, where torch's kernel is fast."""
    return stride == 1 and weight.shape[0] * weight.shape[1] >= 2 * _CHANNELS**2


def winograd(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """conv2d(x, weight, bias, padding=1) for 3 x 3 weights.

    Args:
        x: (B, C, H, W) float32 on the CPU, channels_last.
        weight: (O, C, 3, 3) float32.
        bias: (O,) float32.

    Returns:
        (B, O, H, W) float32, channels_last.
    """
    batch, channels, height, width = x.shape
    high, wide = _tiles(height), _tiles(width)
    taps = _both_ways(_G, weight.permute(2, 3, 0, 1)).view(36, -1, channels)  # (36, O, C)
    out = x.new_empty(batch, height, width, len(weight))
    for part in _rounds(batch, high * wide):
        products = torch.bmm(_inputs(x[part]), taps.transpose(1, 2))  # (36, T, O)
        tiles = _both_ways(_A, products).view(4, 4, -1, high, wide, len(weight))
        image = tiles.permute(2, 3, 0, 4, 1, 5).reshape(-1, 4 * high, 4 * wide, len(weight))
        out[part] = image[:, :height, :width]
    return (out if bias is None else out.add_(bias)).permute(0, 3, 1, 2)


def winograd_weight_grad(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Gradient of conv2d(x, weight, padding=1) with respect to its 3 x 3 weight.

    Args:
        x: (B, C, H, W) float32 on the CPU, channels_last.
        grad: (B, O, H, W), the output's gradient, likewise.

    Returns:
        (O, C, 3, 3) float32, channels_last.
    """
    batch, outputs, height, width = grad.shape
    high, wide = _tiles(height), _tiles(width)
    total = x.new_zeros(36, outputs, x.shape[1])
    for part in _rounds(batch, high * wide):
        image = grad[part].permute(0, 2, 3, 1)  # (B, H, W, O)
        image = F.pad(image, (0, 0, 0, 4 * wide - width, 0, 4 * high - height))
        tiles = image.reshape(-1, high, 4, wide, 4, outputs).permute(2, 4, 0, 1, 3, 5)
        products = _both_ways(_A.t(), tiles).view(36, -1, outputs)  # (36, T, O)
        total.baddbmm_(products.transpose(1, 2), _inputs(x[part]))
    return _both_ways(_G.t(), total).view(3, 3, outputs, -1).permute(2, 3, 0, 1)


def strided_weight_grad(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Gradient of conv2d(x, weight, stride=2, padding=1) with respect to its 3 x 3 weight: a
    matrix product with the 9 inputs of every output side by side. Shapes as above."""
    batch, outputs, height, width = grad.shape
    channels = x.shape[1]
    total = x.new_zeros(outputs, 9 * channels)
    for part in _rounds(batch, height * width):
        image = F.pad(x[part].permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        step, row, column, _ = image.stride()
        size = (len(image), height, width, 3, 3, channels)
        inputs = image.as_strided(size, (step, 2 * row, 2 * column, row, column, 1))
        slopes = grad[part].permute(0, 2, 3, 1).reshape(-1, outputs)
        total.addmm_(slopes.t(), inputs.reshape(-1, 9 * channels))
    return total.view(outputs, 3, 3, channels).permute(0, 3, 1, 2)


def _inputs(x: torch.Tensor) -> torch.Tensor:
    """The transformed 6 x 6 inputs of every tile, (B, C, H, W) -> (36, T, C)."""
    batch, channels, height, width = x.shape
    high, wide = _tiles(height), _tiles(width)
    image = x.permute(0, 2, 3, 1)
    image = F.pad(image, (0, 0, 1, 4 * wide - width + 1, 1, 4 * high - height + 1)).contiguous()
    image_step, row, column, _ = image.stride()
    steps = (row, column, image_step, 4 * row, 4 * column, 1)
    windows = image.as_strided((6, 6, batch, high, wide, channels), steps)
    return _both_ways(_B, windows).view(36, -1, channels)


def _both_ways(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """matrix (p, q) applied to rows and columns of x, q * q values of each of N: (p, p, N)."""
    to, of = matrix.shape
    rows = (matrix @ x.reshape(of, -1)).view(to, of, -1)
    return matrix @ rows


def _tiles(side: int) -> int:
    return -(-side // 4)


def _rounds(batch: int, tiles: int) -> Iterator[slice]:
    """Cuts a batch into runs of images of about _TILES tiles."""
    step = max(1, _TILES // tiles)
    return (slice(first, first + step) for first in range(0, batch, step))
