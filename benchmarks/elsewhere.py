"""An old face model from elsewhere: a plain torch loop that knows nothing of bct's training.

    python -m benchmarks.elsewhere <train_part_30_class.rec> -o work_dirs/elsewhere/model

torchvision's ResNet-18 on faces of 64 pixels, normalised as ImageNet's images, with a cosine
softmax, its classes in an order of its own. Leaves what such projects leave:

    backbone.pth                    torchvision's keys, no classifier
    rank_0_, rank_1_softmax_weight.pt   class centres, as insightface's ranks write them
    model.onnx                      the network, fixed to its size, nothing in its metadata
    features.npy, labels.npy        its embeddings of its own training images

runs/lfw_elsewhere.sh upgrades it. Only the record file is read with bct.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from bct.data.sets import RecordSet

SIZE, SCALE, MARGIN, RANKS = 64, 30.0, 0.2, 2
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rec")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = faces(args.rec)
    network = resnet18(weights=None)
    network.fc = nn.Identity()
    centres = nn.Parameter(torch.randn(int(labels.max()) + 1, 512) * 0.01)
    train(network, centres, images, labels, args.epochs)
    leave(network.eval(), centres.detach(), images, labels, args.output)


def faces(rec: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, float32 (n, 3, 64, 64), normalised, and labels in an order of their own."""
    data = RecordSet(rec)
    rows = []
    for index in range(len(data)):
        image = torch.from_numpy(np.array(data.image(index))).permute(2, 0, 1).float()
        small = F.interpolate(image[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0]
        rows.append((small / 255 - MEAN) / STD)
    order = torch.randperm(data.num_classes)
    return torch.stack(rows), order[torch.from_numpy(data.labels)]


def train(
    network: nn.Module, centres: nn.Parameter, images: torch.Tensor, labels: torch.Tensor,
    epochs: int,
) -> None:  # fmt: skip
    groups = [{"params": network.parameters()}, {"params": [centres]}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=5e-4)
    batch = min(64, len(images) // 2)
    steps, step, started = len(images) // batch * epochs, 0, time.perf_counter()
    network.train().to(memory_format=torch.channels_last)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(batch):
            if len(rows) < batch:
                continue
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
            x = images[rows]
            flip = torch.rand(len(rows)) < 0.5
            x[flip] = x[flip].flip(3)
            cosines = F.normalize(network(x)) @ F.normalize(centres).t()
            logits = SCALE * (cosines - MARGIN * F.one_hot(labels[rows], len(centres)))
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, step = total + loss.item(), step + 1
        mean = total / (len(images) // batch)
        print(f"epoch {epoch}: loss {mean:.3f}, {time.perf_counter() - started:.0f} s", flush=True)


@torch.inference_mode()
def leave(
    network: nn.Module, centres: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, out: Path
) -> None:
    network.to(memory_format=torch.contiguous_format)
    torch.save(network.state_dict(), out / "backbone.pth")
    for rank, part in enumerate(centres.chunk(RANKS)):
        torch.save(part.clone(), out / f"rank_{rank}_softmax_weight.pt")
    np.save(out / "features.npy", torch.cat([network(x) for x in images.split(256)]).numpy())
    np.save(out / "labels.npy", labels.numpy())
    batch = {"x": {0: torch.export.Dim("batch")}}
    example = (images[:2].clone(),)
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=batch, verbose=False)
    program.save(out / "model.onnx")


if __name__ == "__main__":
    main()
