"""The training loop, shared by train_old.py and every method."""

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from backbones import get_model
from bct import distributed
from bct.amp import allow_fast_matmul, amp_dtype, make_scaler
from bct.artefacts import OldModel
from bct.checkpoint import (
    finish,
    load_checkpoint,
    prepare_output,
    run_identity,
    save_checkpoint,
    save_model,
)
from bct.config import command_line, load_config, require
from bct.datasets import Faces, SyntheticFaces, open_faces
from bct.errors import BctError, run_cli
from bct.loader import Batch, Loader
from bct.log import RunLog
from bct.method import Method
from bct.partial_fc import PartialFC, SoftmaxHead
from bct.verification import VerificationSet, load_bin, verify


def main(method_class: type[Method], default_config: str | None = None) -> None:
    """The command line of a training script: [config.py] [key=value ...].

    Args:
        method_class: what to train with.
        default_config: run when none is given, relative to the script's directory.
    """

    def run() -> None:
        here = Path(sys.argv[0]).resolve().parent
        config, overrides = command_line(here / default_config if default_config else None)
        device = distributed.setup()
        try:
            train(load_config(config, overrides, method_class.defaults), method_class, device)
        finally:
            distributed.shutdown()

    run_cli(run)


def train(cfg: EasyDict, method_class: type[Method], device: torch.device) -> None:
    """Trains cfg.network on cfg.rec with a method and leaves the result in cfg.output."""
    require(cfg, "rec", "num_epoch")
    faces = open_training_faces(cfg)
    old = OldModel(cfg, faces, method_class.needs(cfg))

    # ---- build: everything that can be refused is refused before the output is touched
    torch.manual_seed(cfg.seed)
    dtype = amp_dtype(cfg, device)
    allow_fast_matmul(dtype, device)
    backbone = get_model(cfg.network, cfg.embedding_size, dtype).to(device)
    head = make_head(cfg).to(device)
    method = method_class(cfg, old).to(device)
    optimizer = make_optimizer(cfg, backbone, method, head)
    scaler = make_scaler(dtype, device)
    loader = Loader(
        faces,
        cfg.batch_size,
        device,
        seed=cfg.seed,
        num_workers=cfg.num_workers,
        num_classes=cfg.num_classes,
    )
    sets = [load_bin(rec_val_folder(cfg, faces) / f"{name}.bin") for name in cfg.val_targets]
    steps_per_epoch = len(loader) // cfg.gradient_acc
    total, warmup = steps_per_epoch * cfg.num_epoch, steps_per_epoch * cfg.warmup_epoch

    # ---- start, resume, or find it done
    identity = run_identity(
        cfg, method=method_class.__name__, data=faces.fingerprint, old=old.fingerprint
    )
    start = prepare_output(cfg, identity)
    if start == "finished":
        return distributed.say(f"{cfg.output} holds this run, finished: reusing it")
    state = {"epoch": 0, "step": 0, "best": 0.0}
    whole = (backbone, method, head, optimizer, scaler)
    if start == "resume":
        state = load_checkpoint(Path(cfg.output) / "checkpoint.pt", *whole)
    trained = [replicate(module, device) for module in (backbone, method, head)]

    # ---- train
    with RunLog(cfg, total, state["step"]) as log:
        logging.info(
            f"{method_class.__name__}: {cfg.network} in {dtype or torch.float32} on {device}, "
            f"{len(faces)} images of {cfg.num_classes} classes, {total} steps"
        )
        embed = partial(embed_images, cfg, backbone, faces, device)
        for epoch in range(state["epoch"], cfg.num_epoch):
            with log.paused():
                method.begin_epoch(epoch, embed)
            batches = log.timed(loader.epoch(epoch, method.fetch))
            for _ in range(steps_per_epoch):
                lr = lr_at(state["step"], total, warmup, cfg.lr, cfg.lr_power)
                if cfg.decay_epoch:
                    lr = cfg.lr * 0.1 ** sum(epoch >= decay for decay in cfg.decay_epoch)
                losses = train_step(cfg, batches, trained, optimizer, scaler, lr, state["step"])
                state["step"] += 1
                log.step(state["step"], epoch, lr, losses, scaler)
                if sets and (state["step"] % cfg.verbose == 0 or state["step"] == total):
                    with log.paused():
                        evaluate(cfg, backbone, head, sets, state, log, device)
            state["epoch"] = epoch + 1
            with log.paused():
                share_statistics(cfg, backbone)
                save_model(cfg, backbone, head, state["step"], "model.pt")
                save_checkpoint(Path(cfg.output) / "checkpoint.pt", state, *whole)
    finish(cfg, identity)
    distributed.say(f"the trained network is {cfg.output}/model.pt")


def train_step(
    cfg: EasyDict,
    batches: Iterator[Batch],
    trained: list[nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    lr: float,
    step: int,
) -> dict[str, torch.Tensor]:
    """One optimiser step over gradient_acc micro-batches; returns the averaged loss terms.

    trained: backbone, method and head, wrapped for several ranks where they are replicated.
    """
    backbone, method, head = trained
    backbone.train()
    totals: dict[str, torch.Tensor] = {}
    for micro in range(cfg.gradient_acc):
        batch = next(batches)
        key = cfg.seed, distributed.rank(), step, micro
        rng = distributed.generator(batch.images.device, "head", *key)
        torch.manual_seed(distributed.seed_of("backbone", *key))  # drop path, masks of ViTs
        with contextlib.ExitStack() as stack:
            if micro < cfg.gradient_acc - 1:  # gradients travel once, with the last micro-batch
                for module in trained:
                    if isinstance(module, DistributedDataParallel):
                        stack.enter_context(module.no_sync())
            losses = method(backbone(batch.images), batch, head, rng)
            scaler.scale(sum(losses.values()) / cfg.gradient_acc).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach() / cfg.gradient_acc

    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], cfg.clip_norm)  # not the head
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return totals


@torch.no_grad()
def embed_images(
    cfg: EasyDict, backbone: nn.Module, faces: Faces, device: torch.device, indices: np.ndarray
) -> np.ndarray:
    """The network's embeddings of these images, as they are: float32 (len(indices), D).

    Every rank has to call it, each with its own indices.
    """
    share_statistics(cfg, backbone)
    backbone.eval()
    workers = cfg.num_workers
    loader = Loader(
        faces, cfg.batch_size, device, num_workers=workers, train=False, indices=indices
    )
    parts = [backbone(batch.images).float().cpu().numpy() for batch in loader.epoch()]
    return np.concatenate(parts) if parts else np.zeros((0, cfg.embedding_size), np.float32)


def lr_at(step: int, total: int, warmup: int, base: float, power: float) -> float:
    """Learning rate of a step (0-based): linear from 0 over the warm-up, then polynomial to 0.

    A negative warm-up starts part of the way down, as the reference's warmup_epoch = -1 does.
    """
    if step < warmup:
        return base * step / warmup
    return base * max(1 - (step - warmup) / (total - warmup), 0.0) ** power


def open_training_faces(cfg: EasyDict) -> Faces:
    """Opens cfg.rec; fills num_classes and num_image in, or checks them against the data."""
    if cfg.rec == "synthetic":
        require(cfg, "num_image", "num_classes")
        return SyntheticFaces(cfg.num_image, cfg.num_classes)
    faces = open_faces(cfg.rec, cfg.rec_backend)
    for key, found in (("num_image", len(faces)), ("num_classes", faces.num_classes)):
        if cfg[key] not in (None, found):
            raise BctError(
                f"config {cfg.name} says {key} = {cfg[key]}, {faces.path} has {found}",
                f"remove {key} from the config: it is read from the data",
            )
        cfg[key] = found
    return faces


def rec_val_folder(cfg: EasyDict, faces: Faces) -> Path:
    """Where the verification sets are: cfg.rec_val, or the folder of the data."""
    return Path(cfg.rec_val or (faces.path if faces.path.is_dir() else faces.path.parent))


def make_head(cfg: EasyDict) -> PartialFC | SoftmaxHead:
    if cfg.head == "softmax":
        return SoftmaxHead(cfg.embedding_size, cfg.num_classes)
    return PartialFC(
        cfg.embedding_size,
        cfg.num_classes,
        margin=cfg.margin_list,
        scale=cfg.scale,
        sample_rate=cfg.sample_rate,
        filter_above=cfg.interclass_filtering_threshold,
        seed=cfg.seed,
    )


def make_optimizer(
    cfg: EasyDict, backbone: nn.Module, method: Method, head: nn.Module
) -> torch.optim.Optimizer:
    """SGD or AdamW. The first parameter group is what gradient clipping acts on, backbone and
    method; the second what the method keeps from weight decay; the last the head's."""
    free = method.undecayed()
    body = [*backbone.parameters(), *method.parameters()]
    body = [p for p in body if p.requires_grad and not any(p is q for q in free)]
    groups = [{"params": body}, {"params": free, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]] + [{"params": list(head.parameters())}]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    return torch.optim.SGD(
        groups, cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=True
    )


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """DDP around a module that every rank holds whole; itself if there is nothing to keep equal."""
    trainable = any(p.requires_grad for p in module.parameters())
    if distributed.world_size() == 1 or not trainable or isinstance(module, PartialFC):
        return module
    # batch statistics are each rank's own, see share_statistics; torch 2.15 renamed the switch
    options = inspect.signature(DistributedDataParallel).parameters
    new_name = "forward_sync_buffers" in options
    keep_buffers = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **keep_buffers,
    )


def share_statistics(cfg: EasyDict, backbone: nn.Module) -> None:
    """Averages batch-norm statistics over ranks; the published code keeps those of rank 0."""
    if cfg.parity == "corrected":
        distributed.average_buffers(backbone)


def evaluate(
    cfg: EasyDict,
    backbone: nn.Module,
    head: nn.Module,
    sets: list[VerificationSet],
    state: dict,
    log: RunLog,
    device: torch.device,
) -> None:
    """Verifies on cfg.val_targets, logs in insightface's form, and keeps the best network."""
    share_statistics(cfg, backbone)
    step, results = state["step"], verify(backbone, sets, device)
    for images, (name, result) in zip(sets, results.items(), strict=True):
        logging.info(f"[{name}][{step}]XNorm: {result.xnorm:f}")
        note = f" ({images.only} pairs only: it says nothing)" if images.only else ""
        logging.info(f"[{name}][{step}]Accuracy-Flip: {result.mean:1.5f}+-{result.std:1.5f}{note}")
    log.scalars(step, **{name: result.mean for name, result in results.items()})
    mean = sum(result.mean for result in results.values()) / len(results)
    if mean > state["best"]:
        state["best"] = mean
        save_model(cfg, backbone, head, step, "best.pt")
    logging.info(f"[mean][{step}]Accuracy-Highest: {state['best']:1.5f}")
