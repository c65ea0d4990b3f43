"""What each method adds to a step of plain training, and the memory of NCCL's queue.

A step is all that training does per batch: bct.train.train_step with the product's loader, the old
rows from a memory-mapped file (in the page cache). All candidates take a step in turn, each with a
network of its own; three turns are a round. Images and old embeddings are random.
"""

import ctypes
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from backbones import get_model
from bct.amp import allow_fast_matmul, amp_dtype, make_scaler
from bct.config import load_config
from bct.data.loader import Loader
from bct.data.sets import SyntheticSet
from bct.method import Method, load_method, method_names
from bct.old_model import OldModel
from bct.stored.artefacts import artefact_path, write_artefact
from bct.stored.class_statistics import class_means, class_statistics, credible_mask
from bct.train import make_head, train_step
from bct.training.optimizer import make_optimizer
from benchmarks.common import Goal, Row, interleaved, median, peak_gib, publish, spread, start
from methods.NCCL.loss import NCCLLoss
from methods.UniBCT.loss import refined_prototypes
from tools import scaling

ROUND, RANKS, LIMIT = 3, 2, 1.15  # a method's step may take so many times a plain one
# the others change the network or train on stored vectors
NAMES = [n for n in method_names() if load_method(n).backbone.__func__ is Method.backbone.__func__]
NCCL = load_method("NCCL")


class FeatureTerm(NCCL):
    """NCCL without the terms and the part of the queue that compare class probabilities."""

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        self.loss.opinions = self.loss.opinions[:0]

    def forward(self, embeddings, batch, head, rng):
        loss, labels, old = self.loss, batch.labels, F.normalize(batch.old["features"])
        loss.push(old, loss.opinions[:, : len(old)], labels)
        similarity = F.normalize(embeddings.float()) @ loss.queue.t() / self.cfg.temperature
        weight = (1 + old @ loss.queue.t()) / 2
        consensus = loss.consensus(similarity, weight, labels[:, None] == loss.queue_labels)
        return {"cls": head(embeddings, labels, rng), "feature": self.cfg.alpha * consensus}


def fill(loss: NCCLLoss) -> None:
    """Fills NCCL's queue, 256 slots at a time."""
    width, classes = loss.queue.shape[1], loss.num_classes
    for _ in range(len(loss.queue) // 256):
        opinions = torch.rand(len(loss.opinions), 256) / classes
        old = F.normalize(torch.randn(256, width))
        loss.push(old, opinions, torch.randint(classes, (256,)))


def write_old(cfg, dataset: SyntheticSet) -> None:
    """All old artefacts, of random embeddings with an identity in them."""
    rng, dim = np.random.default_rng(0), cfg.embedding_size
    features = rng.standard_normal((dataset.num_classes, dim), np.float32)[dataset.labels]
    features += rng.standard_normal(features.shape, np.float32)
    for kind, array in {
        "old_embedding": features,
        "old_embedding_label": dataset.labels,
        "old_prototype": class_means(features, dataset.labels),
        "credible_old_feature": credible_mask(features, dataset.labels, 0.9),
        "class_statistics": class_statistics(features, dataset.labels),
    }.items():
        made_from = {"kind": kind, "model": "", "weights": "", "data": dataset.fingerprint}
        made_from["data_path"] = "synthetic"
        made_from["dim"] = dim if array.dtype.names else None
        path = artefact_path(kind, cfg.feature_save, cfg.scenario, "old_class70")
        with write_artefact(path, array.shape, array.dtype, **made_from) as out:
            out[:] = array


def trainer(kind: type[Method], options: list[str], dataset: SyntheticSet) -> Callable:
    """A function that trains for one step, built as in bct.train.train."""
    cfg, device = load_config("configs/base.py", options, kind.defaults), torch.device("cpu")
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    allow_fast_matmul(dtype, device)
    backbone, head = get_model(cfg.network, cfg.embedding_size, dtype), make_head(cfg)
    if "influence" in cfg:  # there is no old network, whose own classifier might judge
        cfg.influence = "prototype"
    old = OldModel(cfg, dataset, kind.needs(cfg))
    method = kind(cfg, old)
    if isinstance(method, NCCL):
        fill(method.loss)
    if "refresh_epochs" in cfg:  # UniBCT, with prototypes from the first step on
        cfg.refresh_epochs = [0]
        method.begin_epoch(0, lambda i: old.rows("old_embedding", torch.from_numpy(i)).numpy())
    loader = Loader(dataset, cfg.batch_size, device, num_workers=0, num_classes=cfg.num_classes)
    batches, whole = loader.epoch(0, method.fetch), [backbone, method, head]
    optimizer, scaler = make_optimizer(cfg, backbone, method, head), make_scaler(dtype, device)
    return lambda: train_step(cfg, batches, whole, optimizer, scaler, 0.01, 0)


def steps(
    network: str, batch: int, dim: int, classes: int, images: int, turns: int
) -> tuple[list[Row], list[str]]:
    """Rows of NCCL and of the costliest other method, and a table of all."""
    dataset = SyntheticSet(images, classes)
    kinds = {"plain": Method} | {name: load_method(name) for name in NAMES}
    kinds["NCCL without its class term"] = FeatureTerm
    with tempfile.TemporaryDirectory() as folder:
        options = [f"network={network}", f"batch_size={batch}", f"embedding_size={dim}"]
        options += ["scenario=OPclass", "old_config=old_class30", f"feature_save={folder}"]
        options += [f"num_classes={classes}", "num_epoch=20"]
        write_old(load_config("configs/base.py", options), dataset)
        calls = {name: trainer(kind, options, dataset) for name, kind in kinds.items()}
        times = interleaved(calls, turns)
    lines = [
        f"{network}, batch {batch}, {dim}-d, {classes:,} classes, queue 8,192; {turns} steps:\n",
        f"| method | ms per step, median (min to max) | times plain, of rounds (limit {LIMIT}) |",
        "|---|---|---|",
    ]
    rounds = [slice(i, i + ROUND) for i in range(0, turns, ROUND)]
    cost = {}
    for name, t in times.items():
        ratios = [median(t[r]) / median(times["plain"][r]) for r in rounds]
        cost[name] = median(ratios)
        lines.append(f"| {name} | {spread(t, 1e3, 1)} | {spread(ratios)} |")
    dearest = max((name for name in NAMES if name != "NCCL"), key=cost.get)
    of_rounds = {name: [median(times[name][r]) for r in rounds] for name in times}
    rows = [
        Row(
            f"a step with {name} against one without a method, {network}, B {batch}",
            of_rounds[name],
            of_rounds["plain"],
            gib=peak_gib(),
            goal=Goal(times=1 / LIMIT),
        )
        for name in (dearest, "NCCL")
    ]
    return rows, [*lines, ""]


def refresh(images: int, dim: int) -> str:
    """UniBCT's graphs and linear systems, the new embeddings given."""
    rng = np.random.default_rng(0)
    sizes = rng.poisson(55, images // 55)
    cfg = load_config("configs/base.py", [], load_method("UniBCT").defaults)
    new = np.repeat(rng.standard_normal((len(sizes), dim), np.float32), sizes, axis=0)
    new = torch.from_numpy(new + rng.standard_normal(new.shape, np.float32))
    given = new, new.flip(1), sizes, cfg.propagation, cfg.temperature
    times = interleaved({"": lambda: refined_prototypes(*given)}, 5)[""]
    seconds, what = spread(times, 1e4 / len(new)), f"{len(new):,} of {len(sizes)} classes, {dim}-d"
    return f"UniBCT's refresh, given the embeddings: {seconds} s per 10,000 images ({what}).\n"


def resident() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hold_queue(rank: int, folder: str, classes: int, size: int, dim: int) -> None:
    """One rank: fills its queue and notes the bytes of the buffers and what they add to it."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    for queue_size in (256, size):  # the first only to have all code loaded
        before = resident()
        loss = NCCLLoss(classes, dim, queue_size)
        fill(loss)
        grown = resident() - before
        held = sum(b.nbytes for b in loss.buffers())
        del loss
    Path(f"{folder}/{rank}.json").write_text(json.dumps([held, grown]))
    dist.barrier()
    dist.destroy_process_group()


def memory(classes: int, size: int, dim: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(hold_queue, (folder, classes, size, dim), nprocs=RANKS)
        ranks = [json.loads(Path(f"{folder}/{rank}.json").read_text()) for rank in range(RANKS)]
    formula = scaling.memory(scaling.Job(RANKS, classes, dim, queue=size))["old side"]
    ours = scaling.memory(scaling.Job(8, 93_431, dim, queue=8192))["old side"]
    published = 8192 * 4 * 93_431
    assert abs(ranks[0][0] - formula) < 64, (ranks, formula)  # and the position in the queue
    assert ours <= published / 8
    lines = [
        f"NCCL's queue, Q (2 ceil(C / R) + 4 D + 8) bytes per rank: {ours / 1e9:.3f} GB at "
        f"C = 93,431, Q = 8,192, R = 8, D = {dim}; published, 4 Q C = {published / 1e9:.2f} GB, "
        f"{published / ours:.1f} times as much (limit: at least 8).\n",
        f"Measured at C = {classes:,}, Q = {size:,}, R = {RANKS}, D = {dim}:\n",
        "| rank | formula, MB | buffers, MB | growth of resident memory when filled, MB |",
        "|---:|---:|---:|---:|",
    ]
    for rank, (held, grown) in enumerate(ranks):
        lines.append(f"| {rank} | {formula / 1e6:.1f} | {held / 1e6:.1f} | {grown / 1e6:.1f} |")
    return lines


def main() -> None:
    args = start(__doc__)
    if args.small:
        rows, lines = steps("demo_w32", 32, 128, 1184, 10_000, ROUND)
        lines += [refresh(1000, 64), *memory(9343, 1024, 512)]
    else:
        rows, lines = steps("r18", 32, 512, 10_000, 100_000, 2 * ROUND)
        lines += [refresh(10_000, 512), *memory(93_431, 8192, 512)]
    publish(args, rows, "\n".join(lines))


if __name__ == "__main__":
    main()
