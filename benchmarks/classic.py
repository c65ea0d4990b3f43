"""insightface's training as published, on one rank: network, head and step.

Left out is what costs the classic way more on a single device than it does ours: its process group
of one with DistributedDataParallel and a compression hook, and the scheduler.
Source: arcface_torch (train_v2.py, partial_fc_v2.py, losses.py, backbones/iresnet.py).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from backbones import get_model


class ClassicNetwork(nn.Module):
    """An IResNet laid out (B, C, H, W) in memory, its body in `dtype` (None: fp32).

    Same modules and parameters as get_model(name), which converts its input to channels_last.
    Input (B, 3, 112, 112) float in [-1, 1]; output (B, D) float32.
    """

    def __init__(self, name: str, embedding_size: int, dtype: torch.dtype | None):
        super().__init__()
        self.body = get_model(name, embedding_size).to(memory_format=torch.contiguous_format)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body, x = self.body, x.contiguous()  # convolutions take over the layout they are given
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            x = body.prelu(body.bn1(body.conv1(x)))
            x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
            x = body.bn2(x).flatten(1)
        return body.features(body.fc(x.float()))


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
    network = ClassicNetwork(name, 512, torch.float16 if device.type == "cuda" else None)
    network, head = network.to(device), ClassicHead(centres(classes, 512, device))
    optimizer = classic_sgd(network, head)
    scaler = torch.amp.GradScaler(device.type, growth_interval=100)

    def step() -> float:
        torch.set_float32_matmul_precision("highest")  # ours changes it
        return classic_step(network, head, optimizer, scaler, images, labels)

    return step
