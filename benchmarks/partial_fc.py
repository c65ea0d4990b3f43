"""A PartialFC step (forward, backward, SGD) at MS1MV3 size, and of a million classes at rate 0.1.

The classic way is the published PartialFC v2 in fp32: normalised copies of embeddings and centres,
the margin through arccos and cos of the whole block, softmax probabilities, and torch.optim.SGD
over all centres, whose gradient is dense also when they are sampled. The limit is the bare
arithmetic: the three matrix products in fp32, and one pass over the weight and momentum in use.
"""

import multiprocessing
import time
from operator import sub

import torch
from easydict import EasyDict

from bct.amp import allow_fast_matmul, amp_dtype, dtype_name
from bct.method import Method
from bct.streams import generator
from bct.training.heads import PartialFC
from bct.training.optimizer import make_optimizer
from benchmarks.classic import ClassicHead, classic_sgd
from benchmarks.common import Goal, Row, median, peak_gib, publish, start

SCALE, MARGIN = 64.0, 0.5
STEPS = 3
PARTS = ("forward", "backward", "SGD")
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def ours(classes: int, dim: int, rate: float) -> PartialFC:
    """The head as training sets it up; with its optimiser in `optimizer`."""
    head = PartialFC(dim, classes, margin=(1.0, MARGIN, 0.0), scale=SCALE, sample_rate=rate)
    cfg = EasyDict(optimizer="sgd", backbone_lr_factor=1.0, **SGD)
    head.optimizer = make_optimizer(cfg, torch.nn.Linear(1, 1), Method(cfg, None), head)
    return head


def batch_of(weight: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings that lean towards their centres, so that no loss of the classic way is capped."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, len(weight), (batch,), generator=generator)
    return torch.randn(batch, weight.shape[1], generator=generator) + 50 * weight.detach()[y], y


def step(head: PartialFC | ClassicHead, e: torch.Tensor, y: torch.Tensor, number: int) -> dict:
    """One step: its loss, and the seconds of its parts."""
    x, rng = e.clone().requires_grad_(), generator("cpu", "negatives", number)
    times = [time.perf_counter()]
    loss = head(x, y, rng)
    times.append(time.perf_counter())
    loss.backward()
    times.append(time.perf_counter())
    head.optimizer.step()
    times.append(time.perf_counter())
    head.optimizer.zero_grad()
    return {"loss": loss.item(), **dict(zip(PARTS, map(sub, times[1:], times), strict=False))}


def bare(weight: torch.Tensor, momentum: torch.Tensor, e: torch.Tensor) -> dict:
    """The seconds of the limit, for the centres in use (k, D)."""
    began = time.perf_counter()
    logits = torch.mm(weight, e.t())  # the faster way round
    torch.mm(logits.t(), weight)
    torch.mm(logits, e)
    weight.mul_(1.0)
    momentum.mul_(1.0)
    return {"all": time.perf_counter() - began}


def run(
    way: str, classes: int, dim: int, batch: int, rate: float, steps: int, precision: torch.dtype
) -> tuple[list[dict], float]:
    """What a way's steps return, after one more to warm up, and the peak memory of this process in
    GiB."""
    if way == "ours":  # classic and limit are exact, as published
        allow_fast_matmul(precision, torch.device("cpu"))
    head = ours(classes, dim, rate)
    e, y = batch_of(head.weight, batch)
    if way == "classic":
        head = ClassicHead(head.weight.detach(), MARGIN, rate)
        head.optimizer = classic_sgd(head)
    if way == "limit":
        used = head.weight.detach()[: int(rate * classes)].clone()
        momentum = torch.zeros_like(used)
        done = [bare(used, momentum, e) for _ in range(steps + 1)]
    else:
        done = [step(head, e, y, number) for number in range(steps + 1)]
    return done, peak_gib()


def measure(name: str, size: tuple, rounds: int, precision: torch.dtype | None) -> tuple[Row, str]:
    """The row of a workload, and a line on its parts and memory.

    The ways take turns, each in a fresh process: side by side a million classes would need 12 GB.
    """
    done: dict[str, list[dict]] = {"ours": [], "classic": [], "limit": []}
    first, gib = {}, {}
    for _ in range(rounds):
        for way, steps in done.items():
            # forked, as long as this process has not computed anything itself
            with multiprocessing.get_context("fork").Pool(1) as fresh:
                (warm, *new), gib[way] = fresh.apply(run, (way, *size, STEPS, precision))
            steps += new
            first[way] = warm.get("loss")
    # of the first step only, and of exact products: the classic gradient is another one
    difference = abs(first["ours"] / first["classic"] - 1)
    assert difference < (1e-2 if precision else 1e-5), first
    times = {
        way: [sum(v for part, v in step.items() if part != "loss") for step in steps]
        for way, steps in done.items()
    }
    about = []
    for way in ("ours", "classic"):
        seconds = (f"{part} {median([step[part] for step in done[way]]):.3f} s" for part in PARTS)
        about.append(f"{way} {', '.join(seconds)}, at most {gib[way]:.2f} GiB")
    row = Row(
        name,
        **times,
        limit_name="matrix products, one pass over weight and momentum",
        gib=gib["ours"],
        goal=Goal(times=3.0),
    )
    return row, f"- {name}: {'; '.join(about)}. First losses differ by {difference:.0e}."


def main() -> None:
    args = start(__doc__)
    sizes = {
        "PartialFC step, C 93,431, D 512, B 128": (93_431, 512, 128, 1.0),
        "PartialFC step, C 1 M at rate 0.1, D 512, B 128": (1_000_000, 512, 128, 0.1),
    }
    if args.small:
        sizes = {
            "PartialFC step, C 2,000, D 64, B 32": (2000, 64, 32, 1.0),
            "PartialFC step, C 4,000 at rate 0.1, D 64, B 32": (4000, 64, 32, 0.1),
        }
    dtype = amp_dtype(None, torch.device("cpu"))
    results = []
    for precision in (None, dtype) if dtype else (None,):  # exact, and as training runs here
        for name, size in sizes.items():
            title = f"{name}, products in {dtype_name(precision)}" if precision else name
            results.append(measure(title, size, 1 if args.small else 2, precision))
    publish(args, [row for row, _ in results], "\n".join(line for _, line in results))


if __name__ == "__main__":
    main()
