"""MobileFaceNet (Chen et al., 2018) as insightface scales it: `mbf` and `mbf_large`, same keys."""

import torch
from torch import nn

from backbones.prelu import PReLU


class Wrapped(nn.Module):
    """Runs `layers`; the extra level is part of insightface's key names."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Residual(Wrapped):
    """A chain of depth-wise units, each added to its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.layers:
            x = x + unit(x)
        return x


def conv(i: int, o: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1):
    """Convolution, BN, PReLU."""
    return Wrapped(*linear(i, o, kernel, stride, padding, groups).layers, PReLU(o))


def linear(i: int, o: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1):
    """Convolution, BN, no activation."""
    return Wrapped(
        nn.Conv2d(i, o, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(o)
    )


def depthwise(i: int, o: int, groups: int, stride: int) -> Wrapped:
    """1x1 up to `groups` channels, 3x3 depth-wise, 1x1 down to `o`."""
    return Wrapped(
        conv(i, groups), conv(groups, groups, 3, stride, 1, groups=groups), linear(groups, o)
    )


def residual(channels: int, groups: int, repeats: int) -> Residual:
    return Residual(*(depthwise(channels, channels, groups, 1) for _ in range(repeats)))


class MobileFaceNet(nn.Module):
    """As IResNet; `blocks` are the repeats per stage, `scale` multiplies 64 channels."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        scale: int,
        embedding_size: int = 512,
        amp_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.amp_dtype, self.embedding_size = amp_dtype, embedding_size
        w = 64 * scale
        # insightface leaves the group counts (64, 128, 256, 512) unscaled; weights depend on that
        one = blocks[0] == 1
        second = conv(w, w, 3, 1, 1, groups=64) if one else residual(w, 128, blocks[0])
        self.layers = nn.ModuleList(
            [
                conv(3, w, 3, 2, 1),
                second,
                depthwise(w, w, 128, 2),
                residual(w, 128, blocks[1]),
                depthwise(w, 2 * w, 256, 2),
                residual(2 * w, 256, blocks[2]),
                depthwise(2 * w, 2 * w, 512, 2),
                residual(2 * w, 256, blocks[3]),
            ]
        )
        self.conv_sep = conv(2 * w, 512)
        self.features = Wrapped(
            linear(512, 512, 7, groups=512),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            for layer in self.layers:
                x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.conv_sep(x.float()))
