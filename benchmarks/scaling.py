"""Bytes on the wire, collectives, and who reads what, on 1, 2 and 4 ranks of this machine.

What a rank sends is read from the TCP connections themselves (the kernel's count of payload bytes
of each, Linux), so that other traffic on the loopback interface does not matter; gloo's 48 bytes
of header per message are included. Classic: the collectives of PartialFC v2 as published. The
formulas are those of tools/scaling.py. Ranks share the machine's cores: rates say that the work is
divided, not how fast real machines would be.
"""

import contextlib
import multiprocessing
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from easydict import EasyDict

from backbones import get_model
from bct import distributed
from bct.amp import make_scaler
from bct.data.loader import Batch, Loader
from bct.data.sets import RecordSet
from bct.errors import BctError
from bct.method import Method
from bct.signals import StopRequest
from bct.streams import generator
from bct.train import replicate, train_step
from bct.training.heads import PartialFC
from bct.training.optimizer import make_optimizer
from benchmarks.common import Row, median, publish, start
from benchmarks.pictures import drawn
from tools.scaling import Job, Message, Network, messages, sent, softmax_messages

RANKS = (1, 2, 4)
MARGIN = (1.0, 0.0, 0.4)  # CosFace: the published gradient is exact for it, so results compare
SCALE = 30.0  # at 64 the published loss reaches its cap, -ln 1e-30
# which argument of a collective is the tensor that a rank hands over
HANDED_OVER = {
    "all_reduce": ("all_reduce", 0),
    "all_gather_into_tensor": ("all_gather", 1),
    "all_gather": ("all_gather", 1),
    "reduce_scatter_tensor": ("reduce_scatter", 1),
    "all_to_all_single": ("reduce_scatter", 1),  # bct.distributed.reduce_scatter's way on CPUs
    "reduce": ("reduce", 0),
}
# offset of tcpi_bytes_sent and tcpi_bytes_retrans in the kernel's struct tcp_info, since Linux 4.19
_BYTES_SENT = 200


@contextlib.contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """(kind, bytes handed over) of each collective that this process calls through
    torch.distributed while it lasts. DDP calls its own from C++: they are not among them."""
    calls, originals = [], {name: getattr(dist, name) for name in HANDED_OVER}

    def counting(name: str) -> Callable:
        kind, argument = HANDED_OVER[name]

        def call(*args, **kwargs):
            calls.append((kind, args[argument].nbytes))
            return originals[name](*args, **kwargs)

        return call

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def bytes_sent() -> int:
    """Payload bytes that this process has sent over its TCP connections so far, each once: on a
    busy machine the kernel sends some again."""
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as connection:
                if (
                    connection.type != socket.SOCK_STREAM
                    or connection.family not in (socket.AF_INET, socket.AF_INET6)
                ):  # fmt: skip
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) < _BYTES_SENT + 16:
                raise BctError(
                    "this kernel does not count what a connection sends", "use Linux 4.19 or later"
                )
            sent, again = struct.unpack_from("QQ", info, _BYTES_SENT)
            total += sent - again
    return total


class _ClassicGather(torch.autograd.Function):
    """List-form gather into zeros; backward one reduce per rank, then times their number."""

    @staticmethod
    def forward(ctx, local):
        parts = [torch.zeros_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        return tuple(parts)

    @staticmethod
    def backward(ctx, *grads):
        works = [
            dist.reduce(grad, root, dist.ReduceOp.SUM, async_op=True)
            for root, grad in enumerate(grads)
        ]
        for work in works:
            work.wait()
        return grads[dist.get_rank()] * len(grads)


class _ClassicCrossEntropy(torch.autograd.Function):
    """Three all-reduces; the probabilities replace the logits."""

    @staticmethod
    def forward(ctx, logits, target):
        # logits (N, n), target (N, 1), -1: other rank
        top = logits.amax(1, keepdim=True)
        dist.all_reduce(top, dist.ReduceOp.MAX)
        logits.sub_(top).exp_()
        total = logits.sum(1, keepdim=True)
        dist.all_reduce(total, dist.ReduceOp.SUM)
        logits.div_(total)
        rows = torch.nonzero(target[:, 0] >= 0)[:, 0]
        p = torch.zeros(len(logits), 1)
        p[rows] = logits[rows].gather(1, target[rows])
        dist.all_reduce(p, dist.ReduceOp.SUM)
        ctx.save_for_backward(logits, rows, target)
        return -p.clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, grad):
        p, rows, target = ctx.saved_tensors
        one_hot = torch.zeros(len(rows), p.shape[1]).scatter_(1, target[rows], 1)
        p[rows] -= one_hot
        return p.div_(len(p)).mul_(grad.item()), None


def classic_loss(
    embeddings: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, first: int
) -> torch.Tensor:
    """PartialFC v2 at sample rate 1 with CosFace, as published.

    Args:
        embeddings: (B, D), labels (B,), this rank's.
        weight: (n, D), this rank's centres, the first of which is class `first`.
    """
    e = torch.cat(_ClassicGather.apply(embeddings))
    everyone = [torch.zeros_like(labels) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, labels)
    target = torch.cat(everyone)[:, None] - first
    target[(target < 0) | (target >= len(weight))] = -1
    logits = F.linear(F.normalize(e), F.normalize(weight)).clamp(-1, 1)
    rows = torch.nonzero(target[:, 0] >= 0)[:, 0]
    margin = torch.zeros_like(logits)
    margin[rows, target[rows, 0]] = MARGIN[2]
    return _ClassicCrossEntropy.apply((logits - margin) * SCALE, target)


class CountingFaces(RecordSet):
    """Adds up the bytes of the images it hands out."""

    read = 0

    def payload(self, index: int) -> tuple[memoryview, int]:
        data, label = super().payload(index)
        self.read += len(data)
        return data, label


def traffic(call: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """Bytes that this rank sends, and seconds, per call."""
    distributed.barrier()
    before, began = bytes_sent(), time.perf_counter()
    for _ in range(times):
        call()
    took = time.perf_counter() - began
    distributed.barrier()  # what is still under way has been sent; its own bytes are two headers
    return (bytes_sent() - before) / times, took / times


def collectives_alone(size: EasyDict) -> dict[str, tuple[float, float]]:
    """{collective: (bytes sent, seconds)} on a batch of embeddings of each rank."""
    ranks = distributed.world_size()
    local = torch.randn(size.batch, size.dim)
    whole = torch.randn(ranks * size.batch, size.dim)

    def reduces() -> None:
        for root, chunk in enumerate(whole.chunk(ranks)):
            dist.reduce(chunk, root)

    def exchange() -> torch.Tensor:
        out = torch.empty_like(whole)
        dist.all_to_all_single(out, whole)
        return out.view(ranks, *local.shape).sum(0)

    calls = {
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, local),
        "all_gather": lambda: dist.all_gather(
            [torch.zeros_like(local) for _ in range(ranks)], local
        ),
        "all_reduce": lambda: dist.all_reduce(local),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(local, whole),
        "R reduces": reduces,
        "all_to_all_single, sum": exchange,
    }
    out = {}
    for name, call in calls.items():
        whole.normal_()  # sums of sums would overflow
        local.normal_()
        call()
        tries = [traffic(call, size.steps) for _ in range(size.repeats)]
        out[name] = tuple(median(values) for values in zip(*tries, strict=True))
    return out


def head_steps(size: EasyDict) -> dict[str, dict[str, list]]:
    """Forward and backward of PartialFC, ours and classic in turn, once their results agree."""
    rng = generator("cpu", "batch", distributed.rank())
    e = torch.randn(size.batch, size.dim, generator=rng)
    y = torch.randint(0, size.classes, (size.batch,), generator=rng)
    head = PartialFC(size.dim, size.classes, margin=MARGIN, scale=SCALE)

    def step(loss_of: Callable) -> tuple[torch.Tensor, ...]:
        x, head.weight.grad = e.clone().requires_grad_(), None
        loss = loss_of(x)
        loss.backward()
        return loss.detach(), x.grad, head.weight.grad

    calls = {
        "ours": lambda: step(lambda x: head(x, y)),
        "classic": lambda: step(lambda x: classic_loss(x, y, head.weight, head.start)),
    }
    out = {name: {"bytes": [], "seconds": [], "calls": []} for name in calls}
    results = {}
    for name, call in calls.items():
        with counted() as out[name]["calls"]:
            results[name] = call()
    for a, b in zip(results["ours"], results["classic"], strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm(), (a, b)
    for _ in range(size.repeats):
        for name, call in calls.items():
            sent_bytes, took = traffic(call, size.steps)
            out[name]["bytes"].append(sent_bytes)
            out[name]["seconds"].append(took)
    return out


def training_step(size: EasyDict) -> tuple[float, int, int]:
    """Bytes sent by a whole step of training a small network, its parameters and its batch."""
    cfg = EasyDict(seed=0, gradient_acc=1, clip_norm=5, optimizer="sgd", lr=0.1, momentum=0.9)
    cfg.backbone_lr_factor = 1.0
    cfg.weight_decay, batch = 5e-4, 4
    torch.manual_seed(0)
    backbone, method = get_model("demo_w16", size.dim), Method(cfg, None)
    head = PartialFC(size.dim, size.classes)
    optimizer = make_optimizer(cfg, backbone, method, head)
    trained = [replicate(module, torch.device("cpu")) for module in (backbone, method, head)]
    labels = torch.arange(batch)
    given = Batch(torch.randn(batch, 3, 112, 112), labels, labels, {})
    scaler = make_scaler(None, torch.device("cpu"))
    with StopRequest() as stop:

        def step() -> None:
            train_step(cfg, iter([given]), trained, optimizer, scaler, 0.1, 0)
            stop.agreed()

        for _ in range(2):
            step()  # DDP lays its buckets out anew after the first
        per_step, _ = traffic(step, size.steps)
    return per_step, sum(p.numel() for p in backbone.parameters() if p.requires_grad), batch


def loading(size: EasyDict, record: Path) -> dict[str, object]:
    """An epoch of training batches: which images this rank reads, and how long it takes."""
    dataset = CountingFaces(record)
    loader = Loader(dataset, size.batch // 4, torch.device("cpu"), num_workers=0)
    index = torch.cat([batch.index for batch in loader.epoch()])
    out = {"index": index, "bytes": dataset.read, "seconds": []}
    for epoch in range(size.repeats):
        distributed.barrier()
        began = time.perf_counter()
        for _ in loader.epoch(epoch):
            pass
        out["seconds"].append(time.perf_counter() - began)
    return out


def on_rank(rank: int, ranks: int, folder: str, size: EasyDict, record: Path) -> None:
    torch.set_num_threads(1)
    out = {}
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
        )
        out = {"alone": collectives_alone(size), "head": head_steps(size)}
        out["training"] = training_step(size)
    out["loading"] = loading(size, record)
    torch.save(out, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.shutdown()


def run(ranks: int, size: EasyDict, record: Path) -> list[dict]:
    """What each rank has measured."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            on_rank, (ranks, folder, size, record), nprocs=ranks, start_method="forkserver"
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(ranks)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def head_rows(ranks: int, results: list[dict], size: EasyDict) -> list[Row]:
    job = Job(ranks, size.classes, size.dim, size.batch)
    formula = sum(sent(m, ranks, "gloo") for m in softmax_messages(job)) / 1e3

    def per_turn(name: str, what: str, join: Callable) -> list[float]:
        turns = zip(*(result["head"][name][what] for result in results), strict=True)
        return [join(turn) for turn in turns]

    calls = {name: len(results[0]["head"][name]["calls"]) for name in ("ours", "classic")}
    sizes = f"{ranks} ranks, D {size.dim}, B {size.batch}"
    return [
        Row(
            f"sent per rank and PartialFC step, {sizes}",
            [x / 1e3 for x in per_turn("ours", "bytes", mean)],
            [x / 1e3 for x in per_turn("classic", "bytes", mean)],
            [formula],
            "formula",
            "KB",
        ),
        Row(
            f"collectives per PartialFC step, {ranks} ranks",
            [float(calls["ours"])],
            [float(calls["classic"])],
            unit="calls",
        ),
        Row(
            f"PartialFC step without the optimiser, {sizes}, C {size.classes:,}",
            per_turn("ours", "seconds", max),
            per_turn("classic", "seconds", max),
        ),
    ]


def alone_table(ranks: int, results: list[dict], size: EasyDict) -> list[str]:
    """Lines: each collective's measured bytes, those of the formula, and the least possible."""
    local = 4 * size.batch * size.dim
    handed_over = {
        "all_gather_into_tensor": ("all_gather", local),
        "all_gather": ("all_gather", local),
        "all_reduce": ("all_reduce", local),
        "reduce_scatter_tensor": ("reduce_scatter", ranks * local),
        "R reduces": ("reduce", ranks * local),
        "all_to_all_single, sum": ("reduce_scatter", ranks * local),
    }
    lines = []
    for name, (kind, nbytes) in handed_over.items():
        measured = mean([result["alone"][name][0] for result in results])
        took = max(result["alone"][name][1] for result in results)
        least = sent(Message(name, kind, nbytes), ranks)
        if name == "reduce_scatter_tensor":  # gloo reduces the whole tensor everywhere, then cuts
            kind = "all_reduce"
        formula = sent(Message(name, kind, nbytes), ranks, "gloo")
        lines.append(
            f"| {ranks} | {name} | {nbytes / 1e3:,.1f} | {measured / 1e3:,.1f} | "
            f"{formula / 1e3:,.1f} | {least / 1e3:,.1f} | {1e3 * took:.2f} |"
        )
    return lines


def training_line(ranks: int, results: list[dict], size: EasyDict) -> str:
    measured = mean([result["training"][0] for result in results])
    _, parameters, batch = results[0]["training"]
    job = Job(ranks, size.classes, size.dim, batch, network=Network(parameters))
    formula = sum(sent(message, ranks, "gloo") for message in messages(job))
    return f"{measured / 1e3:,.1f} KB on {ranks} ranks (formula {formula / 1e3:,.1f})"


def loading_line(ranks: int, results: list[dict], record: Path, size: EasyDict) -> str:
    """Checks that the ranks share the images out, each read once."""
    dataset = RecordSet(record)
    whole = sum(len(dataset.payload(i)[0]) for i in range(len(dataset)))
    read = [result["loading"]["bytes"] for result in results]
    index = torch.cat([result["loading"]["index"] for result in results])
    assert sorted(index.tolist()) == list(range(size.images)) and sum(read) == whole
    return f"{ranks} rank(s): {', '.join(f'{x / 1e6:.2f}' for x in read)} of {whole / 1e6:.2f} MB"


def main() -> None:
    args = start(__doc__, training=False)
    # ranks are forked from a clean process that has imported everything once
    multiprocessing.set_forkserver_preload(["torch._dynamo", "benchmarks.scaling"])
    size = EasyDict(classes=8192, dim=512, batch=64, images=2048, repeats=5, steps=3)
    if args.small:
        size = EasyDict(classes=64, dim=32, batch=8, images=128, repeats=2, steps=1)
    rows, alone, training, shares = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        record = drawn(Path(folder) / "train.rec", size.images)
        for ranks in RANKS:
            results = run(ranks, size, record)
            shares.append(loading_line(ranks, results, record, size))
            seconds = [result["loading"]["seconds"] for result in results]
            rows.append(
                Row(
                    f"loading without workers, {ranks} rank(s) on {os.cpu_count()} cores",
                    [max(turn) for turn in zip(*seconds, strict=True)],
                    unit="images/s",
                    items=size.images,
                )
            )
            if ranks > 1:
                rows += head_rows(ranks, results, size)
                alone += alone_table(ranks, results, size)
                training.append(training_line(ranks, results, size))
    details = [
        "Loss and gradients of both ways agree to 1e-4 on every rank. Mean over ranks of the KB "
        f"sent, of {size.batch} x {size.dim} float32 per rank:",
        "",
        "| ranks | collective | handed over | sent | formula | least possible | ms |",
        "|--:|:--|--:|--:|--:|--:|--:|",
        *alone,
        "",
        f"A whole training step (demo_w16): {'; '.join(training)}.",
        "",
        f"Image bytes read in an epoch, by rank: {'; '.join(shares)}. No image is read twice.",
    ]
    publish(args, rows, "\n".join(details))


if __name__ == "__main__":
    main()
