"""The GPU benchmark's parts about training: speed, use of the device, heads, loss curves."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from backbones import get_model
from bct.amp import allow_fast_matmul, amp_dtype, make_scaler
from bct.config import load_config
from bct.data.images import to_network
from bct.data.loader import Batch
from bct.method import Method
from bct.streams import generator
from bct.train import make_head, train_step
from bct.training.optimizer import lr_at, make_optimizer
from benchmarks.classic import (
    ClassicHead,
    ClassicNetwork,
    centres,
    classic_sgd,
    classic_trainer,
    flops,
)
from benchmarks.common import Goal, Row, interleaved, median, synchronize
from benchmarks.gpu_part import Part, compare, gemm, gemm_rate, several

CLASSES, DIM = 93_431, 512
LIMIT = "FLOPs at the rate of bare matrix products"


def faces(batch: int, classes: int, device: torch.device) -> Batch:
    """Random images and labels as the product's loader leaves them on the device."""
    rng = generator(device, "benchmark")
    pixels = torch.randint(0, 256, (batch, 112, 112, 3), generator=rng, device=device)
    labels = torch.randint(0, classes, (batch,), generator=rng, device=device)
    return Batch(to_network(pixels.byte()), labels, torch.arange(batch, device=device), {})


def trainer(
    name: str, classes: int, batch: Batch, compiled: bool = False
) -> Callable[[], torch.Tensor]:
    """A function that trains for one step, built as in bct.train.train; returns the loss."""
    device = batch.images.device
    cfg = load_config("configs/base.py", [f"network={name}", f"num_classes={classes}"])
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    backbone = get_model(name, DIM, dtype).to(device)
    head, method = make_head(cfg).to(device), Method(cfg, None).to(device)
    scaler = make_scaler(dtype, device)
    optimizer = make_optimizer(cfg, backbone, method, head, fused=not scaler.is_enabled())
    if compiled:
        torch.compiler.reset()
        backend = "inductor" if device.type == "cuda" else "eager"  # a compiler may be absent
        backbone = torch.compile(backbone, dynamic=False, backend=backend)
    trained, batches, numbers = [backbone, method, head], itertools.repeat(batch), itertools.count()

    def step() -> torch.Tensor:
        allow_fast_matmul(dtype, device)  # the classic way changes it
        outcome = train_step(cfg, batches, trained, optimizer, scaler, 0.1, next(numbers))
        return outcome.losses["cls"]

    return step


def _cases(small: bool) -> dict[str, tuple[str, int]]:
    """The most telling first: time may run out."""
    names, batches = (("demo_w16",), (4, 8)) if small else (("r50", "r18", "r100"), (256, 512, 128))
    cases = list(itertools.product(names, batches))
    cases += [] if small else [(name, 1024) for name in names]
    return {f"{name}, B {batch}": (name, batch) for name, batch in cases}


def training(part: Part) -> None:
    """Ours as it is and the classic loop, in turn."""
    _training(part, compiled=False)


def compiled_training(part: Part) -> None:
    """Ours with torch.compile around the network, ours as it is, and the classic loop."""
    _training(part, compiled=True)


def _training(part: Part, compiled: bool) -> None:
    device, small = part.device, part.small
    classes, per_call = (50, 8) if small else (CLASSES, 2048)
    rate, cases = gemm_rate(device, small), _cases(small)
    work: dict[str, float] = {}
    if compiled and small:
        cases = dict(list(cases.items())[:1])
    how = "training, compiled" if compiled else "training"
    head, rule = "| case | GiB ours | GiB classic |", "|---|---:|---:|"
    if compiled:
        head, rule = f"{head} times not compiled | first step |", f"{rule}---:|---:|"
    part.lines += [
        f"{classes:,} classes, {DIM}-d. The limit counts the network alone (no head, optimiser or "
        f"batch norm), at {rate / 1e12:.4g} TFLOP/s.",
        "",
        head,
        rule,
    ]
    for case in part.cases(list(cases)):
        name, size = cases[case]
        count, first = max(1, per_call // size), []
        batch = faces(size, classes, device)

        def ours(name=name, batch=batch, count=count, first=first) -> Callable:
            step = trainer(name, classes, batch, compiled)
            began = time.perf_counter()
            several(step, 1, device)()
            first.append(time.perf_counter() - began)
            return several(step, count, device)

        def plain(name=name, batch=batch, count=count) -> Callable:
            return several(trainer(name, classes, batch), count, device)

        def classic(name=name, batch=batch, count=count) -> Callable:
            step = classic_trainer(name, classes, batch.images, batch.labels)
            return several(step, count, device)

        builders = {"ours": ours, "classic": classic} | ({"plain": plain} if compiled else {})
        times, gib = compare(device, builders, 1 if small else 3)
        shown = [f"{gib[k]:.2f}" if k in gib else "out of memory" for k in ("ours", "classic")]
        if compiled and times["ours"] and times["plain"]:
            shown.append(f"{median(times['plain']) / median(times['ours']):.2f}")
            shown.append(f"{first[0]:.1f} s")
        part.lines.append(f"| {case} | " + " | ".join(shown) + " |")
        if not times["ours"]:
            continue
        if name not in work:
            work[name] = flops(name)
        images = size * count
        part.rows.append(
            Row(
                f"{how}, {case}",
                times["ours"],
                times["classic"],
                [work[name] * images / rate],
                LIMIT,
                unit="images/s",
                items=images,
                gib=gib["ours"],
            )
        )


def utilisation(part: Part) -> None:
    """The share of the matrix rate that a step of r50 reaches, and where its time goes."""
    device, small = part.device, part.small
    name, size, classes = ("demo_w16", 8, 50) if small else ("r50", 512, CLASSES)
    count = 1 if small else 4
    batch, steps = faces(size, classes, device), []
    product, product_flops = gemm(device, small)

    def ours() -> Callable:
        steps.append(trainer(name, classes, batch))
        return several(steps[0], count, device)

    times, _ = compare(device, {"ours": ours, "product": lambda: product}, 2 if small else 5)
    if not times["ours"]:
        part.lines.append(f"{name}, B {size}: out of memory.")
        return
    images, work = size * count, flops(name)
    part.lines.append(
        f"{work / 1e9:.4g} GFLOP per image forward and backward, counted on the network; bare "
        f"matrix products {product_flops / median(times['product']) / 1e12:.4g} TFLOP/s."
    )
    part.rows.append(
        Row(
            f"use of the matrix units, {name}, B {size}",
            times["ours"],
            limit=[work * images / product_flops * t for t in times["product"]],
            limit_name=LIMIT,
            unit="images/s",
            items=images,
            goal=Goal() if small else Goal(share=0.4),
        )
    )
    part.lines += _profile(steps[0], median(times["ours"]) / count, device)


def _profile(step: Callable, seconds: float, device: torch.device, steps: int = 3) -> list[str]:
    """Tables of the kernels, and of the operations that start them, that take most of a step."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as found:
        several(step, steps, device)()
    events = [event for event in found.key_averages() if not event.is_user_annotation]

    def taken(event) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total  # microseconds

    kernels = [e for e in events if e.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU)]
    tables = {"kernel" if cuda else "operation": kernels}
    if cuda:
        tables["operation"] = [event for event in events if event.device_type == DeviceType.CPU]
    total = sum(map(taken, kernels))
    lines = [
        "",
        f"{total / steps / 1e3:.4g} ms of kernels in a step of {seconds * 1e3:.4g} ms, profiled "
        f"over {steps} steps:",
    ]
    for kind, rows in tables.items():
        lines += ["", f"| {kind} | calls per step | ms per step | share |", "|---|---:|---:|---:|"]
        for event in sorted(rows, key=taken, reverse=True)[:12]:
            label = event.key.removeprefix("void ").replace("at::native::", "").replace("|", "/")
            lines.append(
                f"| `{label[:100]}` | {event.count / steps:.4g} | {taken(event) / steps / 1e3:.3f} "
                f"| {taken(event) / total:.1%} |"
            )
    return lines


def heads(part: Part) -> None:
    """PartialFC's step against the classic dense one: forward, backward and SGD."""
    device, small = part.device, part.small
    rows, dim = (8, 16) if small else (1024, DIM)
    sizes = (500, 2000) if small else (CLASSES, 1_000_000, 10_000_000)
    cases = {f"C {classes:,}, N {rows:,}, D {dim}": classes for classes in sizes}
    part.lines += ["| case | GiB ours | GiB classic |", "|---|---:|---:|"]
    for case in part.cases(list(cases)):
        classes = cases[case]
        rng = generator(device, "benchmark")
        e = torch.randn(rows, dim, device=device, generator=rng)
        y = torch.randint(0, classes, (rows,), device=device, generator=rng)

        def ours(classes=classes, e=e, y=y) -> Callable:
            given = [f"num_classes={classes}", f"embedding_size={dim}"]
            cfg = load_config("configs/base.py", given)
            head = make_head(cfg).to(device)
            optimizer = make_optimizer(cfg, nn.Identity(), Method(cfg, None), head)
            rng, half = generator(device, "head"), torch.bfloat16 if device.type == "cuda" else None
            return _head_step(
                lambda x: head(x, y, rng), optimizer, e, lambda: allow_fast_matmul(half, device)
            )

        def classic(classes=classes, e=e, y=y) -> Callable:
            head = ClassicHead(centres(classes, dim, device))
            return _head_step(
                lambda x: head(x, y),
                classic_sgd(head),
                e,
                lambda: torch.set_float32_matmul_precision("highest"),
            )

        together = classes <= 1_000_000
        times, gib = compare(device, {"ours": ours, "classic": classic}, 3, together)
        shown = [f"{gib[k]:.2f}" if k in gib else "out of memory" for k in ("ours", "classic")]
        part.lines.append(f"| {case} | " + " | ".join(shown) + " |")
        if times["ours"]:
            limit, name = _bare_head(e, classes), "three bare matrix products"
            found = times["ours"], times["classic"], limit, name
            part.rows.append(Row(f"PartialFC step, {case}", *found, gib=gib["ours"]))


def _head_step(
    loss_of: Callable, optimizer: torch.optim.Optimizer, e: torch.Tensor, precision: Callable
) -> Callable[[], None]:
    def step() -> None:
        precision()
        x = e.clone().requires_grad_()
        loss_of(x).backward()
        optimizer.step()
        optimizer.zero_grad()

    return several(step, 1, e.device)


def _bare_head(e: torch.Tensor, classes: int) -> list[float]:
    """Seconds of the products e w^T, g w and g^T e with the rounding of mixed-precision training,
    extrapolated from at most 2^18 classes: the block of logits has to fit into memory."""
    columns = min(classes, 1 << 18)
    w = torch.randn(columns, e.shape[1], device=e.device)

    def products() -> None:
        g = torch.mm(e, w.t())
        torch.mm(g, w)
        torch.mm(g.t(), e)

    half = torch.bfloat16 if e.device.type == "cuda" else None
    allow_fast_matmul(half, e.device)
    times = interleaved({"": several(products, 1, e.device)}, 5)[""]
    return [t * classes / columns for t in times]


def curves(part: Part) -> None:
    """Whether the fast path learns as plain fp32 does; and how far two fp32 runs lie apart whose
    first weights differ by a rounding."""
    device = part.device
    name, size, steps, window = ("demo_w16", 8, 5, 2) if part.small else ("r18", 128, 200, 20)
    losses = {}
    for curve in part.cases(["plain fp32", "fast", "plain fp32, first weights nudged"]):
        nudge = 2.0**-23 if "nudged" in curve else 0.0
        losses[curve] = _curve(name, size, steps, device, curve == "fast", nudge)
    smooth = {
        curve: np.convolve(values, np.full(window, 1 / window), "valid")
        for curve, values in losses.items()
    }
    plain = smooth.pop("plain fp32")
    part.lines += [
        f"{name}, B {size}, {steps} steps of fixed batches, losses smoothed over {window} steps; "
        f"plain goes from {plain[0]:.3f} to {plain[-1]:.3f}.",
        "",
        "| against plain fp32 | largest difference | mean difference | ends at |",
        "|---|---:|---:|---:|",
    ]
    for curve, values in smooth.items():
        apart = np.abs(values - plain)
        figures = f"{apart.max():.4f} | {apart.mean():.4f} | {values[-1]:.3f}"
        part.lines.append(f"| {curve} | {figures} |")


def _curve(
    name: str, size: int, steps: int, device: torch.device, fast: bool, nudge: float
) -> np.ndarray:
    """Losses of training on classes that are coarse random patterns, see _patterned.

    nudge: the first weights are multiplied by 1 + nudge * N(0, 1).
    """
    classes = 100
    given = [f"network={name}", f"num_classes={classes}", f"amp={None if fast else 'off'}"]
    cfg = load_config("configs/base.py", given)
    torch.manual_seed(0)
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    network = get_model(name, DIM, dtype) if fast else ClassicNetwork(get_model(name, DIM))
    network, head, method = network.to(device), make_head(cfg).to(device), Method(cfg, None)
    rng = generator(device, "nudge")
    for p in network.parameters():
        p.data.mul_(1 + nudge * torch.randn(p.shape, generator=rng, device=device))
    scaler = make_scaler(dtype, device)
    optimizer = make_optimizer(cfg, network, method, head, fused=fast and not scaler.is_enabled())
    rng = generator(device, "patterns")
    patterns = torch.randn(classes, 3, 14, 14, generator=rng, device=device)
    trained, losses = [network, method, head], []
    batches = _patterned(patterns, size, device)
    with _precision(dtype, device, exact=not fast):
        for step in range(steps):
            lr = lr_at(step, steps, steps // 10, 0.05, 1.0)
            losses.append(train_step(cfg, batches, trained, optimizer, scaler, lr, step).losses)
    synchronize(device)
    return torch.stack([loss["cls"] for loss in losses]).cpu().double().numpy()


def _patterned(patterns: torch.Tensor, size: int, device: torch.device) -> Iterator[Batch]:
    """Images of a class differ from each other four times as much as classes do, in the same
    coarse cells: with less the loss is 0 after 40 steps, and equal for any two ways."""
    for step in itertools.count():
        rng = generator(device, "batch", step)
        labels = torch.randint(len(patterns), (size,), generator=rng, device=device)
        cells = torch.randn(size, *patterns.shape[1:], generator=rng, device=device)
        cells = cells.mul_(4).add_(patterns[labels]).div_(8)
        images = nn.functional.interpolate(cells, scale_factor=8, mode="bilinear").clamp_(-1, 1)
        images = images.contiguous(memory_format=torch.channels_last)
        yield Batch(images, labels, labels, {})


@contextmanager
def _precision(dtype: torch.dtype | None, device: torch.device, exact: bool) -> Iterator[None]:
    """The matrix units' rounding: none with `exact`, else training's for this type."""
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = not exact
    if not exact:
        allow_fast_matmul(dtype, device)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
