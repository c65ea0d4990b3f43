"""Tiny training runs: their settings, stopping them, and comparing what two of them leave."""

import contextlib
import signal
from pathlib import Path

import torch
from easydict import EasyDict

from bct import distributed
from bct.config import load_config
from bct.method import Method
from bct.training.checkpoint import checkpoints

TINY = ["network=demo_w32", "embedding_size=16", "batch_size=8", "num_epoch=2", "frequent=1",
        "num_workers=1", "amp=off"]  # fmt: skip


class Job:
    """A config file of a tiny run on folder/train.rec; call it with overrides to resolve it."""

    def __init__(self, folder: Path):
        self.path, self.output = folder / "job.py", folder / "run"
        self.path.write_text(
            "from easydict import EasyDict\nconfig = EasyDict()\n"
            f"config.rec = {str(folder)!r}\nconfig.output = {str(self.output)!r}\n"
            'config.convention = "bct"\n'
        )

    def __call__(self, *overrides: str) -> EasyDict:
        return load_config(self.path, [*TINY, *overrides])


def small_cfg(**more):
    """What an optimiser and a step of training read of a config."""
    base = {"gradient_acc": 1, "clip_norm": 5.0, "seed": 1, "optimizer": "sgd", "lr": 0.1}
    return EasyDict(
        {**base, "momentum": 0.9, "weight_decay": 5e-4, "backbone_lr_factor": 1.0, **more}
    )


def stopping_at(method: type[Method], step: int, number: int = signal.SIGTERM) -> type[Method]:
    """The method, sending its process a signal in a step; with several ranks the last rank only."""

    class Stopping(method):
        calls = 0

        def forward(self, *arguments):
            Stopping.calls += 1
            if Stopping.calls == step and distributed.rank() == distributed.world_size() - 1:
                signal.raise_signal(number)
            return super().forward(*arguments)

    Stopping.__name__ = method.__name__  # the run must not be able to tell
    return Stopping


def assert_same_run(a: Path, b: Path) -> None:
    """The same network and the same last checkpoint, bit by bit."""
    for one, other in ((a / "model.pt", b / "model.pt"), (checkpoints(a)[0], checkpoints(b)[0])):
        one, other = (torch.load(f, weights_only=True) for f in (one, other))
        for saved in (one, other):
            saved.pop("record", None)  # each run has a name of its own
        different = list(differences(one, other))
        assert not different, different[:5]


def differences(a: object, b: object, where: str = ""):
    """Paths at which two nested structures of tensors and plain values are not equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}/{k}")
    elif torch.is_tensor(a) and torch.is_tensor(b):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield where
    elif a != b:
        yield f"{where}: {a} and {b}"


def family(pid: int) -> list[int]:
    """A process and all its descendants, the youngest first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for child in task.read_text().split():
                found += family(int(child))
    return [*found, pid]
