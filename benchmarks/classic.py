"""insightface's way as published, on one rank: network, head, step, and its images.

Left out is what costs the classic way more on a single device than it does ours: its process group
of one with DistributedDataParallel and a compression hook, and the scheduler.
Source: arcface_torch (train_v2.py, partial_fc_v2.py, losses.py, backbones/iresnet.py).
"""

import copy
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from backbones import get_model
from backbones.iresnet import IResNet
from backbones.prelu import PReLU
from bct.data.recordio import MAGIC, MAX_PART


class ClassicNetwork(nn.Module):
    """An IResNet as published: torch's layers, (B, C, H, W) in memory, its body in `dtype` (None:
    fp32). The weights are copies of those of `network`; see get_model, whose networks convert their
    input to channels_last.

    Input (B, 3, 112, 112) float in [-1, 1]; output (B, D) float32.
    """

    def __init__(self, network: IResNet, dtype: torch.dtype | None = None):
        super().__init__()
        body = with_torch_layers(network)
        self.body = body.to(memory_format=torch.contiguous_format)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body, x = self.body, x.contiguous()  # convolutions take over the layout they are given
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            x = body.prelu(body.bn1(body.conv1(x)))
            x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
            x = body.bn2(x).flatten(1)
        return body.features(body.fc(x.float()))


def with_torch_layers(network: IResNet) -> IResNet:
    """A copy in which our PReLU is the torch layer it derives from."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) is PReLU:
            module.__class__ = nn.PReLU
    return network


def flops(name: str, training: bool = True) -> float:
    """Floating-point operations of a network per image, forward and, for training, backward.

    2 for each multiplication of a direct convolution. Counted on the CPU, which leaves a GPU's
    memory and tuned kernels alone, and on the classic network: ours may multiply less.
    """
    network, batch = ClassicNetwork(get_model(name)).train(training), 2  # batch norm needs two
    with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        out = network(torch.randn(batch, 3, 112, 112))
        if training:
            out.sum().backward()
    return counter.get_total_flops() / batch


class ClassicRecords:
    """Reads whole records by key as mxnet.recordio does, in Python: dict, seek, read."""

    def __init__(self, path: Path):
        self.path = path
        self.offsets: dict[int, int] = {}
        self.keys: list[int] = []
        with open(path.with_suffix(".idx")) as index:
            for line in index:
                fields = line.strip().split("\t")
                key = int(fields[0])
                self.offsets[key] = int(fields[1])
                self.keys.append(key)
        self._open()

    def _open(self) -> None:
        self.file, self.process = open(self.path, "rb"), os.getpid()  # noqa: SIM115

    def read(self, key: int) -> bytes:
        """The payload of a record, its header included."""
        if self.process != os.getpid():  # forked processes share the position in the file
            self._open()
        self.file.seek(self.offsets[key])
        magic, word = struct.unpack("<II", self.file.read(8))
        if magic != MAGIC or word > MAX_PART:
            raise ValueError(f"no whole record of key {key}")
        payload = self.file.read(word)
        self.file.read(-word % 4)
        return payload


class ClassicFaces(Dataset):
    """insightface's MXFaceDataset, with Pillow in place of mx.image.imdecode: image by image a
    float32 (3, H, W) in [-1, 1] and the label, int64.

    Args:
        mirror: a random half of the images, as in training.
    """

    def __init__(self, path: Path, mirror: bool = False):
        self.records = ClassicRecords(path)
        label, data = self._read(0 if 0 in self.records.offsets else self.records.keys[0])
        last = int(label[0]) if len(label) > 1 and not data else None
        self.keys = np.arange(1, last) if last else np.array(self.records.keys)
        half = [0.5, 0.5, 0.5]
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                *([transforms.RandomHorizontalFlip()] if mirror else []),
                transforms.ToTensor(),
                transforms.Normalize(mean=half, std=half),
            ]
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        label, data = self._read(self.keys[index])
        image = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        return self.transform(image), torch.tensor(int(label[0]))

    def _read(self, key: int) -> tuple[np.ndarray, bytes]:
        """Labels float32 (n,) and the encoded image of a record."""
        payload = self.records.read(key)
        flag, label, _, _ = struct.unpack("<IfQQ", payload[:24])
        if flag == 0:
            return np.float32([label]), payload[24:]
        return np.frombuffer(payload, "<f4", flag, 24), payload[24 + 4 * flag :]


class _Softmax(torch.autograd.Function):
    """Mean of -log softmax at the target, by way of the probabilities, which backward turns into
    the gradient in place. Below a probability of 1e-30 the loss stays at 69.08."""

    @staticmethod
    def forward(ctx, logits, labels):
        # (N, C), (N,)
        logits.sub_(logits.amax(1, keepdim=True)).exp_()
        logits.div_(logits.sum(1, keepdim=True))
        ctx.save_for_backward(logits, labels)
        target = logits.gather(1, labels[:, None])
        return target.clamp_min(1e-30).log().mean().neg()

    @staticmethod
    def backward(ctx, grad):
        p, labels = ctx.saved_tensors
        one_hot = torch.zeros_like(p).scatter_(1, labels[:, None], 1)
        p.sub_(one_hot).div_(len(p))
        return p * grad.item(), None  # waits for the device


class ClassicHead(nn.Module):
    """PartialFC v2 with ArcFace from these centres (C, D), of which a share `rate` is used.

    The angles of the whole block are computed in place, unseen by autograd: the margin's factor in
    the gradient is missing. The gradient of sampled centres is dense.
    """

    def __init__(self, weight: torch.Tensor, margin: float = 0.5, rate: float = 1.0):
        super().__init__()
        self.weight, self.margin, self.rate = nn.Parameter(weight), margin, rate

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, rng: torch.Generator | None = None
    ) -> torch.Tensor:
        """(B, D) float32, (B,) int64 -> mean loss. rng: of the sample, on the CPU."""
        weight = self.weight
        if self.rate < 1:
            priority = torch.rand(len(weight), generator=rng).to(weight.device)
            priority[labels.unique()] = 2.0
            used = priority.topk(int(self.rate * len(weight))).indices.sort().values
            labels, weight = torch.searchsorted(used, labels), weight[used]
        logits = F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1, 1)
        rows = torch.arange(len(labels), device=labels.device)
        with torch.no_grad():
            angle = logits[rows, labels].arccos()
            logits.arccos_()
            logits[rows, labels] = angle + self.margin
            logits.cos_()
        return _Softmax.apply(logits * 64.0, labels)


def centres(classes: int, dim: int, device: torch.device) -> torch.Tensor:
    """(C, D), as they start: N(0, 0.01^2)."""
    return torch.empty(classes, dim, device=device).normal_(0, 0.01)


def classic_step(
    network: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    """One step of the published loop; returns the loss."""
    network.train()
    loss = head(network(images), labels)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), 5)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return loss.item()


def classic_sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    """torch's default SGD over the modules, a group for each."""
    groups = [{"params": list(module.parameters())} for module in modules]
    return torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=5e-4)


def classic_trainer(
    name: str, classes: int, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], float]:
    """A function that trains for one step: fp16 with a loss scaler (fp32 on a CPU).

    images: float32 (B, 3, 112, 112); labels: int64 (B,).
    """
    device = images.device
    images = images.contiguous()
    half = torch.float16 if device.type == "cuda" else None
    network = ClassicNetwork(get_model(name), half)
    network, head = network.to(device), ClassicHead(centres(classes, 512, device))
    optimizer = classic_sgd(network, head)
    scaler = torch.amp.GradScaler(device.type, growth_interval=100)

    def step() -> float:
        torch.set_float32_matmul_precision("highest")  # ours changes it
        return classic_step(network, head, optimizer, scaler, images, labels)

    return step
