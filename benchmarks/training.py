"""A training step on a CPU or a GPU: ours, the classic way, and the machine's matrix products.

Classic is insightface's loop as it runs without a GPU: fp32, contiguous NCHW, nn.Conv2d and
nn.PReLU, a margin softmax of separate operations, SGD parameter by parameter, torch's allocation of
memory. It has a process of its own, from the same weights, with the same batches. Ours is
bct.train.train_step. Batches are in memory: loading has its own benchmark. The limit is the time
that a large matrix product takes for as many multiplications as the network's convolutions and
linear layers have, in the precision of ours.
"""

import math
import multiprocessing
from collections.abc import Callable
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import nn

from backbones import get_model
from bct.amp import allow_fast_matmul, amp_dtype, make_scaler
from bct.config import load_config
from bct.data.loader import Batch
from bct.method import Method
from bct.train import make_head, train_step
from bct.training.optimizer import make_optimizer
from benchmarks.classic import ClassicNetwork, flops
from benchmarks.common import (
    Goal,
    Row,
    interleaved,
    median,
    peak_gib,
    products,
    publish,
    start,
)

CLASSES, LR = 64, 0.02
WINDOW = 20  # steps over which a loss curve is smoothed
CURVE = "demo_w32"  # small enough for some hundred steps on a CPU


def configured(network: str, batch: int):
    options = [f"network={network}", f"batch_size={batch}", f"num_classes={CLASSES}"]
    return load_config("configs/base.py", [*options, "seed=0"])


def built(network: str, batch: int):
    """Config, network and head as training has them, always from the same weights."""
    cfg = configured(network, batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(cfg.seed)
    backbone = get_model(network, cfg.embedding_size, amp_dtype(cfg.amp, device, cfg.fp16))
    return cfg, device, backbone.to(device), make_head(cfg).to(device)


def drawn_batches(count: int, batch: int, device: torch.device) -> list[Batch]:
    """Something to learn: a smooth picture for each class, under much more noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(CLASSES, 3, 7, 7, generator=draw)
    pictures = F.interpolate(coarse, size=112, mode="bilinear")
    out = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (batch,), generator=draw)
        noise = torch.randn(batch, 3, 112, 112, generator=draw)
        images = (pictures[labels] + 8 * noise).div_(16).clamp_(-1, 1)
        images = images.to(device, memory_format=torch.channels_last)
        out.append(Batch(images, labels.to(device), torch.arange(batch), {}))
    return out


def ours(network: str, batch: int, batches: list[Batch]) -> Callable[[], float]:
    """A function that takes a step and returns its loss."""
    cfg, device, backbone, head = built(network, batch)
    allow_fast_matmul(backbone.amp_dtype, device)
    method, scaler = Method(cfg, None), make_scaler(backbone.amp_dtype, device)
    optimizer = make_optimizer(cfg, backbone, method, head, fused=not scaler.is_enabled())
    whole, forever = [backbone, method, head], cycle(batches)

    def step() -> float:
        outcome = train_step(cfg, forever, whole, optimizer, scaler, LR, 0)
        return outcome.losses["cls"].item()

    return step


def classic(network: str, batch: int, count: int) -> Callable[[], float]:
    """The same by the classic way, with `count` batches."""
    cfg, device, backbone, head = built(network, batch)
    backbone = ClassicNetwork(backbone).train()
    centres = nn.Parameter(head.weight.detach().clone())
    _, margin, _ = cfg.margin_list
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        [{"params": parameters}, {"params": [centres]}],
        lr=LR,
        momentum=cfg.momentum,
        weight_decay=cfg.weight_decay,
        foreach=False,
    )
    forever = cycle(drawn_batches(count, batch, device))

    def step() -> float:
        now = next(forever)
        embeddings = F.normalize(backbone(now.images.contiguous()))
        cosines = F.linear(embeddings, F.normalize(centres)).clamp(-1, 1)
        chosen = F.one_hot(now.labels, CLASSES).bool()
        logits = torch.where(chosen, (cosines.arccos() + margin).cos(), cosines) * cfg.scale
        loss = F.cross_entropy(logits, now.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, cfg.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


class Apart:
    """build(*args)'s function in a process of its own, which has not been set up as ours has."""

    def __init__(self, build: Callable[..., Callable[[], float]], *args: object):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, args))
        self.process.start()
        theirs.close()  # or its end would not show here

    def __call__(self) -> float:
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join()


def _serve(pipe, build: Callable[..., Callable[[], float]], args: tuple) -> None:
    call = build(*args)
    while pipe.recv():
        pipe.send(call())


def against_products(
    workload: str, work: float, candidates: dict[str, Callable], repeats: int, **about: object
) -> Row:
    """The row of `ours` and `classic`. The limit is the time of square
    matrix products of `work` floating-point operations, a tenth of which are done."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 1024 if device.type == "cpu" else 4096
    dtype = amp_dtype(None, device) or torch.float32
    call, done = products(size, math.ceil(work / 10 / (2 * size**3)), dtype, device)
    times = interleaved({**candidates, "limit": call}, repeats)
    limit = [t * work / done for t in times["limit"]]
    found = times["ours"], times["classic"], limit, "its FLOPs in matrix products"
    return Row(workload, *found, gib=peak_gib(), **about)


def step_row(network: str, batch: int, repeats: int, goal: Goal) -> tuple[Row, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = batch * flops(network)
    batches = drawn_batches(2, batch, device)
    theirs = Apart(classic, network, batch, len(batches))
    candidates = {"ours": ours(network, batch, batches), "classic": theirs}
    name = f"training step, {network}, B {batch}"
    row = against_products(name, work, candidates, repeats, goal=goal)
    theirs.close()
    rate = work / median(row.ours) / 1e9
    return row, f"{network}: {work / 1e9:,.0f} GFLOP a step, {rate:.0f} GFLOP/s."


def loss_curves(steps: int, batch: int) -> str:
    """Trains ours and the classic way on the same batches and compares the smoothed losses."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    theirs = Apart(classic, CURVE, batch, steps)
    mine = ours(CURVE, batch, drawn_batches(steps, batch, device))
    losses = torch.tensor([[mine(), theirs()] for _ in range(steps)])  # (steps, 2)
    theirs.close()
    assert losses.isfinite().all()
    first = (losses[0, 0] - losses[0, 1]).abs() / losses[0, 1]
    assert first < 1e-2, f"the same weights and batch give losses {losses[0].tolist()}"
    smooth = losses.unfold(0, min(WINDOW, steps), 1).mean(2)  # (steps - WINDOW + 1, 2)
    difference = (smooth[:, 0] - smooth[:, 1]).abs()
    start, (end, other) = smooth[0, 1].item(), smooth[-1].tolist()
    # how far a mean of WINDOW losses is from the next such: what counts as noise
    noise = losses[:, 1].std().item() if steps < 2 * WINDOW else _scatter(losses[:, 1])
    return (
        f"Loss over {steps} steps ({CURVE}, B {batch}, the same weights and batches, means of "
        f"{min(WINDOW, steps)} steps): from {start:.2f} to {end:.3f} (ours) and {other:.3f} "
        f"(classic); difference of the means {difference.mean():.4f} on average, "
        f"{difference.max():.4f} at most; a mean's own scatter is {noise:.4f}. First step: "
        f"{first:.1e} apart, relative."
    )


def _scatter(losses: torch.Tensor) -> float:
    """Standard error of a mean of WINDOW losses, from differences of neighbours (no trend)."""
    return ((losses[1:] - losses[:-1]).std() / (2 * WINDOW) ** 0.5).item()


def main() -> None:
    args = start(__doc__)
    if args.small:
        plan, curve, goal = [("demo_w32", 8, 1)], (6, 8), Goal()
    else:
        plan, curve = [("r18", 32, 3), ("r50", 32, 2)], (200, 32)
        goal = Goal(times=1.8)
    rows, words = zip(*(step_row(*one, goal) for one in plan), strict=True)
    details = [*words, loss_curves(*curve), f"{torch.get_num_threads()} threads."]
    publish(args, list(rows), "\n\n".join(details))


if __name__ == "__main__":
    main()
