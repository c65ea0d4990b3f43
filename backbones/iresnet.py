"""IResNet: ArcFace's ResNet for faces (Deng et al., CVPR 2019), under insightface's names.

Module names and registration order give exactly insightface's state-dict keys, so its published
weights load with no key missing. Batch-norm eps is 1e-5, as in its PyTorch weights.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from backbones.prelu import PReLU


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """BN - conv - BN - PReLU - conv(stride) - BN, plus the (projected) input; then nothing."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv1(self.bn1(x)))
        out = self.bn3(self.conv2(self.prelu(out)))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Four stages of blocks, then BN - flatten - linear - BN to the embedding.

    Args:
        depths: blocks in each of the four stages.
        embedding_size: D, dimension of the embedding.
        width: channels of the first stage; the later ones have 2, 4 and 8 times as many.
        stem_stride: 4 starts with a 7 x 7 convolution that quarters height and width: a sixteenth
            of the work, for experiments on a CPU.
        checkpoint_segments: per stage, into how many runs its blocks are divided; training keeps
            only the input of a run (but the last) and computes it again for backward. Running
            statistics there meet each batch twice and move by 0.19, not 0.1. 0: keep everything.
        amp_dtype: autocast type of the convolutional body, None for fp32. The last linear layer
            and batch norm always run in fp32.

    Input (B, 3, 112, 112) float in [-1, 1]; output (B, D) float32, not normalised.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        embedding_size: int = 512,
        width: int = 64,
        stem_stride: int = 1,
        checkpoint_segments: tuple[int, int, int, int] = (0, 0, 0, 0),
        amp_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.amp_dtype, self.embedding_size = amp_dtype, embedding_size
        self.checkpoint_segments = checkpoint_segments
        kernel = 3 if stem_stride == 1 else 2 * stem_stride - 1
        self.conv1 = nn.Conv2d(3, width, kernel, stem_stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = PReLU(width)
        channels = width
        for stage, depth in enumerate(depths):
            out_channels = width << stage
            blocks = [Block(channels, out_channels, stride=2)]
            blocks += [Block(out_channels, out_channels, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = out_channels
        self.bn2 = nn.BatchNorm2d(channels)
        side = -(-112 // (16 * stem_stride))
        self.fc = nn.Linear(channels * side * side, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad = False  # stays 1: the margin loss fixes the scale
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            x = self.prelu(self.bn1(self.conv1(x)))
            stages = (self.layer1, self.layer2, self.layer3, self.layer4)
            for stage, segments in zip(stages, self.checkpoint_segments, strict=True):
                if segments and self.training and torch.is_grad_enabled():
                    x = checkpoint_sequential(stage, segments, x, use_reentrant=False)
                else:
                    x = stage(x)
            x = self.bn2(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.float().flatten(1)))
