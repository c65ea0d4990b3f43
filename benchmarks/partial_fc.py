"""PartialFC step at MS1MV3 size against plain fp32 autograd: C = 93,431, D = 512, B = 128.

A step is forward, backward and SGD with momentum. Ours is timed in exact fp32 and as training runs
it with mixed precision (matrix products with bf16 inputs, fp32 sums). The parts say where it goes.
"""

import math
import time

import torch
import torch.nn.functional as F

from bct.partial_fc import PartialFC
from benchmarks.common import interleaved, median, peak_gib, publish, spread, start


def plain_loss(e: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """ArcFace (s 64, m 0.5) in the obvious way; the classic implementation without the ranks."""
    cos = F.linear(F.normalize(e), F.normalize(w)).clamp(-1, 1)
    target = cos.gather(1, y[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)
    sine = torch.sqrt(1 - target * target)
    moved = target * math.cos(0.5) - sine * math.sin(0.5)
    moved = torch.where(target > math.cos(math.pi - 0.5), moved, target - 0.5 * math.sin(0.5))
    return F.cross_entropy(64 * cos.scatter(1, y[:, None], moved), y)


def main() -> None:
    args = start(__doc__)
    classes, dim, batch = (2000, 64, 32) if args.small else (93_431, 512, 128)
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(batch, dim, generator=generator)
    y = torch.randint(0, classes, (batch,), generator=generator)
    head = PartialFC(dim, classes)
    plain = torch.nn.Parameter(head.weight.detach().clone())
    ours_sgd = torch.optim.SGD(head.parameters(), 0.1, 0.9, weight_decay=5e-4, fused=True)
    plain_sgd = torch.optim.SGD([plain], 0.1, 0.9, weight_decay=5e-4)
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "optimiser": []}
    losses = {}

    def step(name, loss_of, optimizer, precision, record=False):
        torch.set_float32_matmul_precision(precision)
        x = e.clone().requires_grad_()
        times = [time.perf_counter()]
        loss = loss_of(x)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        optimizer.zero_grad()
        losses.setdefault(name, loss.item())
        if record:
            for part, a, b in zip(parts.values(), times, times[1:], strict=False):
                part.append(b - a)

    candidates = {
        "plain fp32 autograd": lambda: step(
            "plain", lambda x: plain_loss(x, plain, y), plain_sgd, "highest"
        ),
        "ours, fp32": lambda: step("ours", lambda x: head(x, y), ours_sgd, "highest"),
        "ours, mixed": lambda: step("mixed", lambda x: head(x, y), ours_sgd, "medium", True),
    }
    times = interleaved(candidates)
    assert abs(losses["plain"] - losses["ours"]) < 1e-3, (
        losses
    )  # the first step of each is the same
    reference = median(times["plain fp32 autograd"])
    rows = [f"| {name} | {spread(t)} | {reference / median(t):.2f} |" for name, t in times.items()]
    lines = ["| step | seconds, median (min to max) | times as fast |", "|---|---|---:|", *rows, ""]
    left = ", ".join(f"{name} {median(t[1:]):.3f} s" for name, t in parts.items())
    lines.append(f"Mixed, by part: {left}. Peak memory of the process {peak_gib():.2f} GiB.")
    publish(args, "\n".join(lines))


if __name__ == "__main__":
    main()
