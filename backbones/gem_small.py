"""A small residual network with generalised-mean pooling, to train on a CPU while you wait."""

import torch
import torch.nn.functional as F
from torch import nn

from backbones.gem import GeM


class Residual(nn.Module):
    """relu(bn(conv(relu(bn(conv x)))) + shortcut x); the first convolution has the stride."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class GemSmall(nn.Module):
    """Convolution 7 x 7 with stride 4 - BN - ReLU, three residual blocks, GeM - linear - BN.

    Each block halves height and width and doubles the channels. GeM's p is 3.

    Args:
        width: channels of the first convolution; the blocks have 2, 4 and 8 times as many.
        embedding_size: D.
        amp_dtype: autocast type of the convolutions, None for fp32. Pooling, the last linear layer
            and batch norm always run in fp32.

    Input (B, 3, H, W) float of any H and W from 32 on; output (B, D) float32, not normalised.
    """

    def __init__(self, width: int, embedding_size: int = 512, amp_dtype: torch.dtype | None = None):
        super().__init__()
        self.embedding_size, self.amp_dtype = embedding_size, amp_dtype
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 7, 4, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *(Residual(width << stage, 2 * width << stage, 2) for stage in range(3)),
        )
        self.pool = GeM()
        self.embedding = nn.Sequential(
            nn.Linear(8 * width, embedding_size, bias=False), nn.BatchNorm1d(embedding_size)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            x = self.body(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.embedding(self.pool(x))
