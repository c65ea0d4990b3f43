"""Every network as an ONNX file: how far it is from torch at batch 1 and 7, its size and the time.

The networks have random weights and the running statistics of one batch of noise. The difference is
the largest one, over the largest value of torch's output.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from backbones import NETWORKS, get_model
from benchmarks.common import peak_gib, publish, start
from tools.export_onnx import check, export

SMALL = ("demo_w16", "mbf", "vit_t")


def warmed_up(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = get_model(name).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of the one batch
    with torch.no_grad():
        model(2 * torch.rand(4, 3, 112, 112) - 1)
    return model.eval()


def main() -> None:
    args = start(__doc__, training=False)
    lines = [
        "| network | parameters, M | file(s), MB | seconds | difference | memory so far, GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in SMALL if args.small else NETWORKS:
        model = warmed_up(name)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            export(model, Path(folder) / "model.onnx", {})
            seconds = time.perf_counter() - began
            worst = check(model, Path(folder) / "model.onnx")
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        lines.append(
            f"| {name} | {parameters:.1f} | {size / 1e6:.0f} | {seconds:.0f} | {worst:.1e} | "
            f"{peak_gib():.1f} |"
        )
        print(lines[-1], flush=True)
    publish(args, [], "\n".join(lines))


if __name__ == "__main__":
    main()
