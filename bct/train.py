"""The training loop, shared by train_old.py and every method."""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bct import distributed
from bct.amp import allow_fast_matmul, amp_dtype, make_scaler
from bct.command import run_cli
from bct.config import SECRET, command_line, convention_line, load_config, require
from bct.data.image_set import ImageSet
from bct.data.loader import Batch, Loader
from bct.errors import BctError
from bct.log import BadRecords, RunLog
from bct.method import Method
from bct.models.about import view_of_config
from bct.models.embed import embedded
from bct.old_model import OldModel
from bct.signals import StopRequest
from bct.streams import generator, seed_of
from bct.training import feasible
from bct.training.checkpoint import load_checkpoint, save_checkpoint
from bct.training.finite import FiniteCheck, Outcome
from bct.training.frozen import freeze, train_mode
from bct.training.heads import make_head
from bct.training.initial import Start, digest, start_from
from bct.training.longer import say_longer
from bct.training.optimizer import group_named, learning_rate, loss_share, make_optimizer, set_rate
from bct.training.replicas import replicate, share_statistics
from bct.training.run_folder import describe, goes_on, prepared_output, run_identity, save_model
from bct.training.run_record import RunRecord
from bct.validation import (
    Validation,
    highest_until,
    open_validation,
    say_chosen_before,
    validate,
)
from bct.wandb_run import check_wandb


def main(method_class: type[Method], default_config: str | None = None) -> None:
    """The command line of a training script: [config.py] [key=value ...].

    Args:
        method_class: what to train with.
        default_config: run when none is given, relative to the script's directory.
    """

    def run() -> None:
        here = Path(sys.argv[0]).resolve().parent
        config, overrides = command_line(here / default_config if default_config else None)
        cfg = load_config(config, overrides, method_class.defaults)
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):  # torchrun --max-restarts
            cfg.resume = True
        device = distributed.setup(cfg.timeout)
        code = train(cfg, method_class, device)
        distributed.shutdown()
        sys.exit(code)

    run_cli(run)


class Job(NamedTuple):
    """What a training works with."""

    cfg: EasyDict
    device: torch.device
    dataset: ImageSet
    backbone: nn.Module
    method: Method
    head: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    validation: Validation
    bad: BadRecords | None  # images that were skipped
    about: dict[str, Any]  # for model.json
    start: Start | None  # what init_from has given
    record: RunRecord | None = None  # of the output, once it is prepared

    @property
    def whole(self) -> tuple:
        """What a checkpoint holds."""
        return self.backbone, self.method, self.head, self.optimizer, self.scaler

    @property
    def steps_per_epoch(self) -> int:
        return len(self.loader) // self.cfg.gradient_acc

    @property
    def total(self) -> int:
        return self.steps_per_epoch * self.cfg.num_epoch


def train(cfg: EasyDict, method_class: type[Method], device: torch.device) -> int:
    """Trains cfg.network on cfg.rec with a method and leaves the result in cfg.output.

    Returns:
        The exit code: 0, or 128 + the number of the signal that stopped it.
    """
    # everything that can be refused is refused before the output is touched
    require(cfg, "num_epoch")
    check_wandb(cfg)
    dataset = method_class.data(cfg)
    feasible.read_counts(cfg, dataset)
    old = OldModel(cfg, dataset, method_class.needs(cfg))
    if old.dim is not None:
        method_class.check_dimensions(cfg, old.dim)
    method_class.check_absent(cfg, old.absent)
    identity = agreed_identity(cfg, method_class, dataset, old)
    job = build(cfg, method_class, dataset, old, device, goes_on(cfg, identity))

    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    feasible.check_head(cfg, method_class.classifies(cfg))
    feasible.check_steps(cfg, len(job.loader))
    feasible.check_batch_norm(cfg, job.backbone, job.method, job.loader.blank(1))
    with prepared_output(cfg, identity) as (start, record):
        if start == "finished":
            distributed.say(f"{cfg.output} holds this run, finished: reusing it")
            say_chosen_before(cfg, job.validation)
            return 0
        trained = [replicate(module, device) for module in (job.backbone, job.method, job.head)]
        step, highest = 0, {}
        if start == "resume":
            progress = load_checkpoint(record, *job.whole)
            step, highest = continue_from(progress, job)
            job = job._replace(validation=job.validation.after(progress))
        elif cfg.init_from and not job.start:
            raise BctError(f"{cfg.output} has changed meanwhile", "start again")
        job = job._replace(record=record)
        log = RunLog(cfg, job.total, step, job.scaler, record.events_suffix, job.bad, record.run)
        with log, StopRequest() as stop:
            logging.info(convention_line(cfg))
            logging.info(
                f"{method_class.__name__}: {cfg.network} in {dtype or torch.float32} on {device}, "
                f"{len(dataset)} images of {cfg.num_classes} classes, {job.total} steps"
            )
            if start == "fresh" and job.start:
                job.start.log()
            say_longer(record, cfg, step, job.steps_per_epoch)
            stopped_by = take_steps(job, trained, step, highest, log, stop)
        if stopped_by:
            return 128 + stopped_by
        if not (Path(cfg.output) / "model.pt").is_file():  # lost after the last checkpoint
            save_model(cfg, job.backbone, job.head, job.total, "model.pt", job.about)
        record.finished = True
        record.write()
        distributed.say(f"the trained network is {cfg.output}/model.pt")
        return 0


# keys whose values may differ between machines, or that no message may show
_OWN = ("rec", "rec_val", "val_data", "val_old_features", *SECRET)


def agreed_identity(
    cfg: EasyDict, method_class: type[Method], dataset: ImageSet, old: OldModel
) -> dict[str, Any]:
    """What the run depends on. Raises BctError when the ranks do not agree on it."""
    inputs = {"data": dataset.fingerprint, "old": old.fingerprint, "init_from": digest(cfg)}
    settings = {key: repr(value) for key, value in cfg.items() if key not in _OWN}
    distributed.agree(**(settings | {key: str(value) for key, value in inputs.items()}))
    return run_identity(cfg, method=method_class.__name__, **inputs)


def build(
    cfg: EasyDict,
    method_class: type[Method],
    dataset: ImageSet,
    old: OldModel,
    device: torch.device,
    resumed: bool = False,
) -> Job:
    """Network, method, head and all else, as they are before the first step; resumed: without
    init_from, since a checkpoint has their weights."""
    torch.manual_seed(cfg.seed)
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    allow_fast_matmul(dtype, device)
    backbone = method_class.backbone(cfg, old, dtype).to(device)
    head = make_head(cfg).to(device)
    start = start_from(cfg, dataset, backbone, head) if cfg.init_from and not resumed else None
    freeze(backbone, cfg.freeze)
    method = method_class(cfg, old).to(device)
    feasible.check_trained(backbone, method, head)
    scaler = make_scaler(dtype, device)
    optimizer = make_optimizer(cfg, backbone, method, head, fused=not scaler.is_enabled())
    bad = BadRecords(cfg) if cfg.on_bad_record == "skip" else None
    loader = Loader(
        dataset,
        cfg.batch_size,
        device,
        seed=cfg.seed,
        num_workers=cfg.num_workers,
        num_classes=cfg.num_classes,
        view=view_of_config(cfg),
        images_per_class=cfg.images_per_class,
        broken=bad,
    )
    validation = open_validation(cfg, dataset, old, method_class)
    about = describe(cfg, dataset, method_class.output_width(cfg, old.dim))
    modules = backbone, method, head, optimizer, scaler
    return Job(cfg, device, dataset, *modules, loader, validation, bad, about, start)


def take_steps(
    job: Job,
    trained: list[nn.Module],
    step: int,
    highest: dict[str, float],
    log: RunLog,
    stop: StopRequest,
) -> int:
    """Trains from a step to the end; the number of the signal that has stopped it before, or 0.

    trained: backbone, method and head, as train_step takes them.
    highest: the best of each figure of the validation so far.
    """
    cfg, check = job.cfg, FiniteCheck(job.cfg, job.dataset)
    embed = partial(embed_images, cfg, job.backbone, job.dataset, job.device)
    while step < job.total:
        epoch, done = divmod(step, job.steps_per_epoch)
        if done == 0:
            with log.paused():
                job.method.begin_epoch(epoch, embed)
        first = done * cfg.gradient_acc  # batch of this epoch
        batches = log.timed(job.loader.epoch(epoch, job.method.fetch, first))
        for _ in range(done, job.steps_per_epoch):
            lr = learning_rate(cfg, step, job.steps_per_epoch)
            frozen = cfg.freeze_statistics_at
            train_mode(job.backbone, frozen is None or step < job.total * frozen)
            outcome = train_step(cfg, batches, trained, job.optimizer, job.scaler, lr, step)
            step += 1
            check.note(step, lr, outcome)
            due = due_after(job, step, stop.agreed())
            if due.any or step % cfg.frequent == 0:
                check.verify()
            log.step(step, epoch, lr, outcome.losses)
            if log.unread:  # `| head`, or a tee that was killed
                stop.ask(signal.SIGPIPE)
            with log.paused():
                highest = keep(job, due, step, highest, log)
            if due.stop:
                name = signal.Signals(due.stop).name
                logging.info(f"stopped by {name} after step {step}: go on with resume=True")
                return due.stop
    return 0


class Due(NamedTuple):
    """What has to be done after a step."""

    validation: bool
    model: bool
    checkpoint: bool
    stop: int  # the signal to stop for, or 0

    @property
    def any(self) -> bool:
        """Whether something is written."""
        return self.validation or self.checkpoint


def due_after(job: Job, step: int, asked: int) -> Due:
    """asked: the number of a signal that has asked any rank to stop, or 0."""
    end, last = step % job.steps_per_epoch == 0, step == job.total
    validation = bool(job.validation) and (step % job.cfg.verbose == 0 or last)
    checkpoint = bool(asked) or end or step % job.cfg.save_every == 0
    return Due(validation, end, checkpoint, 0 if last else asked)


def keep(job: Job, due: Due, step: int, highest: dict[str, float], log: RunLog) -> dict[str, float]:
    """Validates and saves what is due after a step.

    Returns:
        The best of each figure of the validation so far.
    """
    if due.validation:
        share_statistics(job.cfg, job.backbone)
        whole = job.backbone, job.method, job.head, job.device
        highest, rises = validate(job.cfg, job.validation, *whole, step, highest, log)
        if rises:
            about = {**job.about, "chosen_by": job.validation.best}
            save_model(job.cfg, job.backbone, job.head, step, "best.pt", about)
    if due.model:
        share_statistics(job.cfg, job.backbone)
        save_model(job.cfg, job.backbone, job.head, step, "model.pt", job.about)
        log.model(step, step // job.steps_per_epoch - 1)
    if due.checkpoint:
        save(job, step, highest, log)
    return highest


def continue_from(progress: dict[str, Any], job: Job) -> tuple[int, dict[str, float]]:
    """The step to go on from and the best of each figure of the validation until then; says what
    differs when the batches are cut in another way."""
    then = {key: progress[key] for key in ("world_size", "batch_size", "gradient_acc")}
    now = {"world_size": distributed.world_size(), **batch_shape(job.cfg)}
    step = progress["step"]
    if then != now:
        step = round(step / progress["steps_per_epoch"] * job.steps_per_epoch)
        distributed.say(
            f"warning: continuing a run of {then} as {now}, at step {step}: weights, centres, "
            "momentum and epoch are the same; batches, mirroring, random draws, each rank's batch "
            "statistics and rounding are not what they would have been"
        )
    return step, highest_until(progress, job.validation)


def batch_shape(cfg: EasyDict) -> dict[str, int]:
    return {"batch_size": cfg.batch_size, "gradient_acc": cfg.gradient_acc}


def save(job: Job, step: int, highest: dict[str, float], log: RunLog) -> None:
    """Writes a checkpoint and logs how long the training stood still for it."""
    cfg, began = job.cfg, time.perf_counter()
    progress = {"step": step, "steps_per_epoch": job.steps_per_epoch, **batch_shape(cfg)}
    progress |= {"best": highest, **job.validation.said()}
    save_checkpoint(job.record, progress, *job.whole, keep=cfg.keep_checkpoints)
    log.scalars(step, checkpoint_seconds=time.perf_counter() - began)


def train_step(
    cfg: EasyDict,
    batches: Iterator[Batch],
    trained: list[nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    lr: float,
    step: int,
) -> Outcome:
    """One optimiser step over gradient_acc micro-batches, whose loss terms are averaged.

    trained: backbone, method and head, wrapped for several ranks where they are replicated.
    """
    backbone, method, head = trained
    totals: dict[str, torch.Tensor] = {}
    seen = []
    for micro in range(cfg.gradient_acc):
        batch = next(batches)
        seen.append(batch.index)
        key = cfg.seed, distributed.rank(), step, micro
        rng = generator(batch.images.device, "head", *key)
        torch.manual_seed(seed_of("backbone", *key))  # drop path, masks of ViTs
        with contextlib.ExitStack() as stack:
            if micro < cfg.gradient_acc - 1:  # gradients travel once, with the last micro-batch
                for module in trained:
                    if isinstance(module, DistributedDataParallel):
                        stack.enter_context(module.no_sync())
            losses = method(backbone(batch.images), batch, head, rng)
            scaler.scale(sum(losses.values()) * loss_share(cfg)).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach() / cfg.gradient_acc

    set_rate(optimizer, lr)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(group_named(optimizer, "body"), cfg.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return Outcome(totals, None if scaler.is_enabled() else norm, torch.cat(seen))


def embed_images(
    cfg: EasyDict, backbone: nn.Module, dataset: ImageSet, device: torch.device, indices: np.ndarray
) -> np.ndarray:
    """The network's embeddings of these images, as they are: float32 (len(indices), D).

    Every rank has to call it, each with its own indices.
    """
    share_statistics(cfg, backbone)
    backbone.eval()
    workers = cfg.num_workers
    loader = Loader(
        dataset,
        cfg.batch_size,
        device,
        num_workers=workers,
        train=False,
        view=view_of_config(cfg),
        indices=indices,
    )
    parts = [rows["own"] for _, rows in embedded({"own": backbone}, loader)]
    return np.concatenate(parts) if parts else np.zeros((0, cfg.embedding_size), np.float32)
