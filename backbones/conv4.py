"""A network of four convolutions for small images, to train on a CPU while you wait."""

import torch
from torch import nn


class Conv4(nn.Module):
    """Four times convolution 3 x 3 - BN - ReLU - max pool 2 x 2, then 2 x 2 means - linear - BN.

    The network of the few-shot literature on Omniglot, but that the pools round up: images of 28 x
    28 end as 2 x 2, and strokes keep a little of their place.

    Args:
        width: channels of every convolution.
        embedding_size: D.
        amp_dtype: autocast type of the convolutions, None for fp32. The last linear layer and batch
            norm always run in fp32.

    Input (B, 3, H, W) float, meant for 28 to 64 pixels a side; output (B, D) float32, not
    normalised.
    """

    def __init__(self, width: int, embedding_size: int = 512, amp_dtype: torch.dtype | None = None):
        super().__init__()
        self.embedding_size, self.amp_dtype = embedding_size, amp_dtype
        layers, channels = [], 3
        for _ in range(4):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.MaxPool2d(2, ceil_mode=True),  # before ReLU it is the same, for a quarter of it
                nn.ReLU(),
            ]
            channels = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.embedding = nn.Sequential(
            nn.Linear(4 * width, embedding_size, bias=False), nn.BatchNorm1d(embedding_size)
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
            return self.embedding(x.float())
