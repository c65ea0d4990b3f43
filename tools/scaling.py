"""What a training step needs on any number of ranks: memory, and bytes on the network.

    python -m tools.scaling --ranks 8 64 512 --classes 93431 1e6 1e8 --sample-rate 1 0.1

Prints a Markdown table and says which settings do not fit into --memory GB. docs/scaling.md derives
the formulas and compares them with measured figures. GB, MB and ms are powers of ten.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from backbones import NETWORKS, get_model
from bct.command import Parser, positive, run_cli, takes
from bct.data.images import SIZE
from bct.errors import BctError
from bct.keys import number, whole
from bct.training.heads import BLOCK

_FIRST_BUCKET, _BUCKET = 1 << 20, 25 << 20  # bytes of gradient that DDP reduces at a time


@dataclass(frozen=True)
class Network:
    """What counts of a backbone: trainable parameters, and the bytes that its forward pass leaves
    for the backward pass, per image and (casts of the weights) per step."""

    parameters: int
    per_image: int = 0
    per_step: int = 0


@dataclass(frozen=True)
class Job:
    """A training run.

    Args:
        ranks: R; classes: C; dim: D.
        batch: B, images per rank and step.
        sample_rate: share of a rank's centres used per step.
        states: float32 values that the optimiser keeps per parameter: 1 for SGD with momentum, 2
            for AdamW.
        block: logits that exist at once on a rank.
        queue: slots of the method NCCL, 0 without it.
        prototypes: the loss has a term against one constant row per class (BCT, UniBCT).

    Raises:
        BctError: a value that no run can have.
    """

    ranks: int
    classes: int
    dim: int = 512
    batch: int = 128
    sample_rate: float = 1.0
    network: Network = Network(0)
    states: int = 1
    block: int = BLOCK
    queue: int = 0
    prototypes: bool = False

    def __post_init__(self) -> None:
        for key in ("ranks", "dim", "batch", "block"):
            if getattr(self, key) < 1:
                raise BctError(f"{key} = {getattr(self, key)}", "give at least 1")
        if self.classes < max(self.ranks, 2):
            raise BctError(
                f"{self.classes} classes can't be cut over {self.ranks} ranks",
                "use fewer ranks, and at least 2 classes",
            )
        if not 0 < self.sample_rate <= 1:
            raise BctError(f"sample_rate = {self.sample_rate}", "give a value above 0, at most 1")
        if self.queue and self.sample_rate < 1:
            raise BctError("the method NCCL uses all classes", "leave --sample-rate at 1")

    @property
    def images(self) -> int:
        """N, images of all ranks in a step."""
        return self.ranks * self.batch

    @property
    def rows(self) -> int:
        """n, classes of the first rank, which has the most."""
        return -(-self.classes // self.ranks)

    @property
    def used(self) -> int:
        """m, classes of a rank that take part in a step: the sampled ones, or more if the batch
        has more; with labels drawn uniformly n (1 - (1 - 1 / C)^N) are expected of it."""
        if self.sample_rate == 1:
            return self.rows
        positive = -self.rows * math.expm1(self.images * math.log1p(-1 / self.classes))
        return max(int(self.sample_rate * self.rows), math.ceil(positive), 1)


@dataclass(frozen=True)
class Message:
    """One or several equal collectives of a step.

    Args:
        kind: the operation; of all_gather nbytes are a rank's own rows, of all others the whole
            tensor that a rank hands over.
        nbytes: of all `count` together.
    """

    name: str
    kind: str
    nbytes: int
    count: int = 1


def memory(job: Job) -> dict[str, int]:
    """Bytes on the rank with the most classes, by what they are for. Their sum is an upper bound:
    a library's work space is left out, but not all of it is alive at the same moment."""
    rows, used, row = job.rows, job.used, 4 * job.dim
    network = 4 * job.network.parameters * (2 + job.states)  # weights, gradients, state
    centres = row * rows * (2 + job.states)
    if job.sample_rate < 1:
        centres += 2 * row * used  # the sampled rows and their gradient
        if job.states == 1:  # RowSGD: no whole gradient, but each row's age, each index
            centres += (4 - row) * rows + 8 * used
    old = 0
    if job.queue:  # bfloat16 opinions of this rank's classes, float32 embeddings, int64 labels
        old += job.queue * (2 * rows + row + 8)
    if job.prototypes:
        old += row * rows
    return {
        "network": network,
        "activations": job.batch * job.network.per_image + job.network.per_step,
        "centres": centres,
        "logits": 4 * min(job.images * used, job.block),
        "embeddings": 2 * row * job.images,  # gathered, and their gradient
        "old side": old,
    }


def softmax_messages(job: Job) -> list[Message]:
    """What a margin softmax with sharded classes sends: PartialFC, and `prototype_softmax`."""
    local, images = 4 * job.batch * job.dim, job.images
    return [
        Message("embeddings", "all_gather", local),
        Message("labels", "all_gather", 8 * job.batch),
        Message("largest logit", "all_reduce", 4 * images),
        Message("sums and targets", "all_reduce", 8 * images),
        Message("gradient of embeddings", "reduce_scatter", local * job.ranks),
    ]


def classic_messages(job: Job) -> list[Message]:
    """The same for the published PartialFC v2, whose gather's backward pass is R reduces."""
    local, images = 4 * job.batch * job.dim, job.images
    return [
        Message("embeddings", "all_gather", local),
        Message("labels", "all_gather", 8 * job.batch),
        Message("largest logit, sum, target", "all_reduce", 3 * 4 * images, 3),
        Message("gradient of embeddings", "reduce", local * job.ranks, job.ranks),
    ]


def queue_messages(job: Job) -> list[Message]:
    """What the method NCCL adds: its queue's new rows, and similarities of class probabilities."""
    local, images = 4 * job.batch * job.dim, job.images
    similarities = 4 * job.batch * job.queue
    return [
        Message("old embeddings", "all_gather", local),
        Message("labels", "all_gather", 2 * 8 * job.batch, 2),  # to classify by, and to store
        Message("opinion on old embeddings", "all_reduce", 2 * 4 * images, 2),
        Message("embeddings", "all_gather", local),
        Message("opinion on new embeddings", "all_reduce", 2 * 4 * images, 2),
        Message("similarities", "reduce_scatter", similarities * job.ranks),
        Message("gradient of similarities", "all_gather", similarities),
        Message("gradient of opinions", "all_reduce", 4 * images),
        Message("gradient of embeddings", "reduce_scatter", local * job.ranks),
    ]


def messages(job: Job) -> list[Message]:
    """All that a training step sends; nothing with one rank."""
    if job.ranks == 1:
        return []
    gradient = 4 * job.network.parameters
    out = softmax_messages(job)
    if job.prototypes:
        out += softmax_messages(job)
    if job.queue:
        out += queue_messages(job)
    if gradient:
        buckets = 1 + max(0, math.ceil((gradient - _FIRST_BUCKET) / _BUCKET))
        out.append(Message("gradient of the network", "all_reduce", gradient, buckets))
    return [*out, Message("request to stop", "all_reduce", 8)]


def sent(message: Message, ranks: int, library: str = "ring") -> float:
    """Bytes that a rank sends for a message; for a reduce, whose root sends less, their mean.

    Args:
        library: "ring" is the least that a bandwidth-optimal algorithm sends (NCCL on large
            messages); "gloo" is what torch does on CPUs.
    """
    others = (ranks - 1) / ranks
    factor = {
        "all_gather": ranks - 1,
        "all_reduce": 2 * others,
        "reduce_scatter": others,  # on CPUs ours is an all-to-all and a sum
        # gloo's is a reduce-scatter, whose parts the root then collects
        "reduce": others * (1 + 1 / ranks if library == "gloo" else 1),
    }[message.kind]
    return message.nbytes * factor


def seconds(
    given: Iterable[Message], ranks: int, bandwidth: float, latency: float, ring: bool = False
) -> float:
    """Time of the messages one after another, nothing overlapping with computation.

    Args:
        bandwidth: bytes per second that a rank can send while it receives as much.
        latency: seconds per hop. A collective has R - 1 of them on a ring, log2 R on a tree, an
            all-reduce twice as many; which one a library takes depends on size and topology.
    """
    hops = ranks - 1 if ring else math.ceil(math.log2(ranks))
    return sum(
        sent(message, ranks) / bandwidth
        + latency * hops * message.count * (2 if message.kind == "all_reduce" else 1)
        for message in given
    )


def head_flop(job: Job) -> int:
    """Floating-point operations of the head's three matrix products on one rank."""
    return 6 * job.images * job.used * job.dim


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, without the
    model's own parameters and buffers."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def measure(name: str, dim: int, dtype: torch.dtype | None) -> Network:
    """Runs a network forward on 2 and on 4 images, on the CPU."""
    model = get_model(name, dim, dtype).train()
    two, four = (saved_bytes(model, torch.zeros(k, 3, SIZE, SIZE)) for k in (2, 4))
    per_image = (four - two) // 2
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Network(trained, per_image, two - 2 * per_image)


def table(jobs: list[Job], room: float, bandwidth: float, latency: float) -> str:
    """The jobs as a Markdown table, and a line for those that need more than `room` bytes."""
    lines = [
        "| classes | rate | ranks | network and activations, GB | centres | logits | embeddings | "
        "old side | sum | fits | sent per step, MB | ms, trees to rings | collectives of the head, "
        "ours and classic | head, TFLOP |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|:--|--:|:--|:--|--:|",
    ]
    too_large = []
    for job in jobs:
        parts, given = memory(job), messages(job)
        total = sum(parts.values())
        if total > room:
            too_large.append(f"{job.classes:,} at rate {job.sample_rate:g} on {job.ranks}")
        body = parts.pop("network") + parts.pop("activations")
        tree, ring = (seconds(given, job.ranks, bandwidth, latency, ring) for ring in (False, True))
        ours, classic = (
            sum(message.count for message in of(job)) for of in (softmax_messages, classic_messages)
        )
        cells = [
            f"{job.classes:,}",
            f"{job.sample_rate:g}",
            str(job.ranks),
            *(f"{value / 1e9:.2f}" for value in (body, *parts.values(), total)),
            "yes" if total <= room else "no",
            f"{sum(sent(message, job.ranks) for message in given) / 1e6:,.0f}",
            f"{1e3 * tree:.1f} to {1e3 * ring:.1f}",
            f"{ours}, {classic}",
            f"{head_flop(job) / 1e12:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    verdict = "; ".join(too_large) or "none"
    return "\n".join([*lines, "", f"Does not fit into {room / 1e9:g} GB: {verdict}."])


_number_from_1 = takes(number(1.0, least=1))


def _whole(text: str) -> int:
    """An integer that may be written as 1e6."""
    value = _number_from_1(text)
    return positive(str(int(value)) if value.is_integer() else text)


def main() -> None:
    parser = Parser(__doc__)
    add, above_0 = parser.add_argument, takes(number(1.0, above=0))
    add("--ranks", type=positive, nargs="+", default=[8, 64, 512])
    add("--classes", type=_whole, nargs="+", required=True, help="e.g. 93431 1e6")
    add("--sample-rate", type=takes(number(1.0, above=0, most=1)), nargs="+", default=[1.0])
    add("--dim", type=takes(whole(1, least=1, most=65536)), default=512, help="of an embedding")
    add("--batch", type=positive, default=128, help="images per rank")
    add("--network", default="r50", choices=list(NETWORKS), metavar="NAME")
    add("--amp", default="bf16", choices=("bf16", "off"))
    add("--optimizer", default="sgd", choices=("sgd", "adamw"))
    add("--queue", type=takes(whole(0)), default=0, help="slots of the method NCCL")
    add("--prototypes", action="store_true", help="of BCT and UniBCT")
    add("--block", type=_whole, default=BLOCK, help="logits that exist at once")
    add("--memory", type=above_0, default=80, help="GB of a rank")
    add("--bandwidth", type=above_0, default=25, help="GB/s that a rank can send")
    add("--latency", type=takes(number(0.0, least=0)), default=10, help="microseconds per hop")
    args = parser.parse_args()
    network = measure(args.network, args.dim, {"bf16": torch.bfloat16, "off": None}[args.amp])
    jobs = [
        Job(
            ranks, classes, args.dim, args.batch, rate, network,
            states={"sgd": 1, "adamw": 2}[args.optimizer],
            block=args.block, queue=args.queue, prototypes=args.prototypes,
        )
        for classes in args.classes
        for rate in args.sample_rate
        for ranks in args.ranks
    ]  # fmt: skip
    print(
        f"{args.network}: {network.parameters:,} parameters; a forward pass keeps "
        f"{network.per_image:,} bytes per image and {network.per_step:,} per step ({args.amp}).\n"
        f"D = {args.dim}, B = {args.batch} per rank, {args.optimizer}; {args.bandwidth:g} GB/s, "
        f"{args.latency:g} us per hop.\n"
    )
    print(table(jobs, args.memory * 1e9, args.bandwidth * 1e9, args.latency * 1e-6))


if __name__ == "__main__":
    run_cli(main)
