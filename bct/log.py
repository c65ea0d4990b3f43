"""What a run says: insightface's log lines, TensorBoard, metrics.jsonl, wandb, progress bars."""

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from tqdm import tqdm

from bct import distributed
from bct.errors import BctError
from bct.files import atomic
from bct.wandb_run import open_wandb


def progress(items: Iterable, what: str, total: int | None = None, unit: str = "it") -> tqdm:
    """A progress bar with an ETA, on rank 0 and on a terminal only."""
    hide = True if not distributed.is_main() else None  # None: hidden when stderr is no terminal
    return tqdm(items, desc=what, total=total, unit=unit, disable=hide, dynamic_ncols=True)


class _BesideBars(logging.Handler):
    """Prints log lines to stdout without tearing a progress bar apart.

    unread: whether stdout is a pipe whose reader has gone.
    """

    unread = False

    def emit(self, record: logging.LogRecord) -> None:
        self.unread |= _on_screen(lambda: self._print(self.format(record))) == errno.EPIPE

    def _print(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()  # a failure has to show here, not in whatever prints next


class _LogFile(logging.FileHandler):
    """A log file without which a run goes on when it can't be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        _warn_of_lost(self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):  # of the line that handleError has told of
            super().close()


def _on_screen(write: Callable[[], object]) -> int:
    """Prints; a screen that is gone, as when a terminal is closed, does not end a run.

    Returns:
        0, or the error's number. What is printed after it is dropped.
    """
    try:
        write()
        return 0
    except OSError as error:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    os.dup2(nowhere.fileno(), stream.fileno())
        return error.errno or errno.EIO


def _warn_of_lost(what: str | Path, error: BaseException | None) -> None:
    logging.warning("%s can't be written any more (%s): the run goes on without it", what, error)


class RunLog:
    """Logs a training run on rank 0; on the other ranks it only keeps time. A context manager.

    Writes to `output`: training.log (also on the screen), metrics.jsonl and tensorboard/.
    Speed excludes the time inside `paused`; data-wait is the share of time the loop waited for its
    next batch. Lines of a former attempt beyond the step it resumes from are dropped.

    Args:
        events_suffix: how the names of TensorBoard's event files end.
        scaler: its scale and the steps it has skipped are logged, if it is at work.
        bad: counts the images that were skipped, if they are.
        run: the name of the run, for wandb.

    Raises BctError if wandb is asked for and does not start.
    """

    def __init__(
        self,
        cfg: EasyDict,
        total_steps: int,
        start_step: int,
        scaler: torch.amp.GradScaler,
        events_suffix: str = "",
        bad: "BadRecords | None" = None,
        run: str = "",
    ):
        self.wandb = open_wandb(cfg, run)  # first: it may refuse
        self.cfg, self.total, self.first = cfg, total_steps, start_step
        self.scaler, self.bad = scaler, bad
        self.sums: dict[str, torch.Tensor] = {}
        self.count, self.waited, self.pauses = 0, 0.0, 0.0
        self.scale, self.overflows = scaler.get_scale(), 0
        self.writer = self.jsonl = self.screen = None
        self.bar = progress((), cfg.name, total_steps, unit="step")
        self._advance(start_step)
        logging.getLogger().setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            output = Path(cfg.output)
            self.screen = _BesideBars()
            self.screen.addFilter(lambda record: not getattr(record, "file_only", False))
            self.handlers = [
                self.screen,
                # names of files may be no text
                _LogFile(output / "training.log", encoding="utf-8", errors="surrogateescape"),
            ]
            for handler in self.handlers:
                handler.setFormatter(logging.Formatter("Training: %(asctime)s-%(message)s"))
                logging.getLogger().addHandler(handler)
            _forget_after(output / "metrics.jsonl", start_step)
            self.writer = SummaryWriter(
                output / "tensorboard", purge_step=start_step + 1, filename_suffix=events_suffix
            )
            self.jsonl = open(output / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self.started = self.last = time.perf_counter()

    def timed(self, batches: Iterable) -> Iterator:
        """Passes batches on and adds up how long each took to come."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step(
        self,
        step: int,
        epoch: int,
        lr: float,
        losses: dict[str, torch.Tensor],
    ) -> None:
        """Called after every optimiser step; writes a line every `frequent` of them.

        Args:
            losses: the step's loss terms; they stay on the device until a line is written.
        """
        self._advance(1)
        self.count += 1
        if self.scaler.is_enabled():
            scale = self.scaler.get_scale()
            self.overflows += scale < self.scale  # it falls after a skipped step, and then only
            self.scale = scale
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        if step % self.cfg.frequent and step != self.total:
            return
        terms = {name: float(value) / self.count for name, value in self.sums.items()}
        loss = sum(terms.values())
        now = time.perf_counter()
        elapsed = now - self.last - self.pauses
        per_step = self.cfg.batch_size * self.cfg.gradient_acc * distributed.world_size()
        images = self.count * per_step
        speed, wait = images / elapsed, self.waited / elapsed
        hours = (now - self.started) / (step - self.first) * (self.total - step) / 3600
        extra = {"epoch": epoch, "loss": loss, "learning_rate": lr, "speed": speed}
        grad_scale = ""
        if self.scaler.is_enabled():
            grad_scale = f"Fp16 Grad Scale: {self.scale:2.0f}   Overflows: {self.overflows}   "
            extra |= {"grad_scale": self.scale, "overflows": self.overflows}
        skipped = ""
        if self.bad is not None:
            extra["bad_records"] = count = sum(distributed.all_gather_object(self.bad.count))
            skipped = f"   BadRecords: {count}" if count else ""
        logging.info(
            f"Speed {speed:.2f} samples/sec   Loss {loss:.4f}   LearningRate {lr:.6f}   "
            f"Epoch: {epoch}   Global Step: {step}   {grad_scale}Required: {hours:1.0f} hours   "
            f"DataWait: {wait:.0%}{skipped}"
        )
        self.scalars(step, **extra, data_wait=wait, time_for_end=hours, **_prefixed(terms))
        self.last, self.sums = now, {}
        self.count, self.waited, self.pauses = 0, 0.0, 0.0

    def scalars(self, step: int, **values: Any) -> None:
        """Writes values to metrics.jsonl, TensorBoard and wandb under their names."""
        if self.jsonl is not None:
            try:
                self.jsonl.write(json.dumps({"step": step, **values}) + "\n")
                self.jsonl.flush()
            except OSError as error:
                self.jsonl = _lost(self.jsonl.name, self.jsonl.close, error)
        if self.writer is not None:
            try:
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)
            except OSError as error:
                self.writer = _lost("tensorboard/", self.writer.close, error)
        if self.wandb is not None:
            self.wandb.log(step, values)

    def model(self, step: int, epoch: int) -> None:
        """Tells wandb of the model.pt that an epoch, from 0, has left."""
        if self.wandb is not None and distributed.is_main():
            file = Path(self.cfg.output) / "model.pt"
            self.wandb.model(file, f"E{epoch}")
            if step == self.total:
                self.wandb.model(file, "Final")

    @property
    def unread(self) -> bool:
        """Whether what it prints goes into a pipe that nobody reads any more."""
        return self.screen is not None and self.screen.unread

    def _advance(self, steps: int) -> None:
        if _on_screen(lambda: self.bar.update(steps)):
            self.bar.disable = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the time of evaluating or saving out of the speed."""
        start = time.perf_counter()
        yield
        self.pauses += time.perf_counter() - start

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _on_screen(self.bar.close)
        if self.wandb is not None:
            self.wandb.finish(failed=kind is not None)
        for sink in (self.jsonl, self.writer):
            if sink is not None:
                try:
                    sink.close()
                except OSError as error:
                    _warn_of_lost(self.cfg.output, error)
        if self.screen is not None:
            for handler in self.handlers:
                logging.getLogger().removeHandler(handler)
                handler.close()


class BadRecords:
    """Images that training goes on without: counted, listed in bad_records.txt, and bounded.

    Every time one is met counts, so that the rate is that of the images trained on.

    Args:
        cfg: output, and max_bad_rate, the share above which it raises BctError.
    """

    def __init__(self, cfg: EasyDict):
        self.file, self.limit = Path(cfg.output) / "bad_records.txt", cfg.max_bad_rate
        self.count, self.seen = 0, 0

    def __call__(self, images: int, problems: list[str]) -> None:
        self.seen += images
        self.count += len(problems)
        if not problems:
            return
        how = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be no text
        with open(self.file, "a", **how) as file:  # short appends don't mix
            file.writelines(f"rank {distributed.rank()}: {problem}\n" for problem in problems)
        for problem in problems:
            logging.warning("skipped: %s", problem)
        if self.count > self.limit * max(self.seen, _ENOUGH):
            raise BctError(
                f"{self.count} of {self.seen} images could not be read, more than the "
                f"{self.limit:g} of max_bad_rate; {self.file} lists them",
                "copy the data again; tools/check_rec.py examines a whole record file",
            )


_ENOUGH = 1000  # images after which a rate means something


def _lost(what: str, close: Callable[[], object], error: OSError) -> None:
    """Says that a log has come to its end, and closes it."""
    _warn_of_lost(what, error)
    with suppress(OSError):  # the same failure again
        close()


def _forget_after(path: Path, step: int) -> None:
    """Drops the lines of later steps, which will be run again, and those that are damaged: a log
    decides nothing. The last one may have been cut by a crash."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines()
    steps = [_step_of(line) for line in lines]
    if damaged := sum(found is None for found in steps[:-1]):
        logging.warning("%s: %d damaged lines are left out", path, damaged)
    with atomic(path) as temporary:
        kept = (n is not None and n <= step for n in steps)
        temporary.write_bytes(b"".join(line + b"\n" for line in compress(lines, kept)))


def _step_of(line: bytes) -> int | None:
    """The step that a line of metrics.jsonl is about; None if it is no such line."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = said.get("step") if isinstance(said, dict) else None
    return found if isinstance(found, int) else None


def _prefixed(terms: dict[str, float]) -> dict[str, float]:
    return {f"loss/{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
