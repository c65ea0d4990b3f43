"""BT-2's networks, built of torchvision's modules, and its checkpoints."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from support.networks import settle


def trained(model):
    """As ours in memory, so that the same sums are taken in the same order."""
    return settle(model).to(memory_format=torch.channels_last)


class BT2ResNet(nn.Module):
    """ResNet-18 with a last block of d channels; logits and embedding (B, d, 1, 1)."""

    def __init__(self, d, classes, norm):
        super().__init__()
        net, block = torchvision.models.resnet18(weights=None), torchvision.models.resnet.BasicBlock
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            self.add_module(name, getattr(net, name))
        last = block(
            512, d, downsample=nn.Sequential(nn.Conv2d(512, d, 1, bias=False), nn.BatchNorm2d(d))
        )
        self.layer4 = nn.Sequential(net.layer4[0], last)
        self.fc = nn.Conv2d(d, classes, 1, bias=False)
        self.norm = norm

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        feature = F.adaptive_avg_pool2d(x, 1)
        if self.norm:
            feature = F.normalize(feature)
        return self.fc(feature).flatten(1), feature


class BT2Basis(nn.Module):
    """What the paper's network computes, with all rows of the old branch."""

    def __init__(self, d, d_old, a, C, classes):
        super().__init__()
        self.resnet = BT2ResNet(d + d_old, 9, norm=False)
        self.fc3 = nn.Conv2d(d + d_old, d_old, 1)
        self.fc_out = nn.Linear(d, classes, bias=False)
        self.ortholinear_p = orthogonal(nn.Linear(d, d, bias=False))
        self.ortholinear_old2 = orthogonal(nn.Linear(d_old, d_old, bias=False))
        self.d, self.d_old, self.a, self.C = d, d_old, a, C

    def forward(self, x):
        h = self.resnet(x)[1]
        f = F.normalize(h.flatten(1)[:, : self.d])
        o = F.normalize(F.normalize(self.fc3(F.relu(h)).flatten(1))[:, : self.a])
        u = torch.cat([o, self.ortholinear_p(self.C * f)], 1)
        b = self.ortholinear_old2(u[:, : self.d_old])
        return self.fc_out(f), b, f, torch.cat([b, u[:, self.d_old :]], 1)


def bt2_checkpoint(path, model, prefix):
    state = {prefix + key: value for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    torch.save(
        {"epoch": 5, "model_state_dict": state, "optimizer_state_dict": optimizer, "loss": 0.5},
        path,
    )
