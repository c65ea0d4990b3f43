"""A run's output directory: what it holds, whether it may be continued, and the files themselves.

config.py       the resolved config
run.json        what the run depends on, and whether it is finished
model.pt        the network's state_dict (insightface's keys), after every epoch
model.json      network, embedding size and what else is needed to use model.pt
best.pt         the same at the best verification result, when there are val_targets
checkpoint.pt   everything needed to resume, class centres in global class order
training.log, metrics.jsonl, tensorboard/
"""

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from easydict import EasyDict
from torch import nn

from bct import distributed
from bct.config import save_config
from bct.errors import BctError
from bct.files import atomic, read_json, sha256_file, write_json
from bct.partial_fc import classes_to_rank0, own_classes

# keys that do not change what is learnt
_FREE = {
    *("name", "output", "resume", "overwrite", "rec", "rec_val", "rec_backend", "num_workers"),
    *("frequent", "verbose", "val_targets", "feature_save", "num_classes", "num_image"),
}


def run_identity(cfg: EasyDict, **inputs: str) -> dict[str, Any]:
    """What a run's result depends on: config values and fingerprints of its inputs."""
    values = {key: value for key, value in cfg.items() if key not in _FREE}
    # through JSON, so that it compares equal to what is read back: tuples become lists
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in {**values, **inputs}.items()
    }


def prepare_output(cfg: EasyDict, identity: dict[str, Any]) -> str:
    """Decides on rank 0, for all ranks, how to start: "fresh", "resume" or "finished".

    Nothing is replaced without overwrite=True. Raises BctError when the directory holds a run that
    may neither be continued nor replaced.
    """
    decision: list[Any] = [None]
    if distributed.is_main():
        try:
            decision[0] = _decide(cfg, identity)
            if decision[0] == "fresh":
                _clear(Path(cfg.output))
                write_json(Path(cfg.output) / "run.json", {"finished": False, "identity": identity})
            if decision[0] != "finished":
                save_config(cfg, Path(cfg.output) / "config.py")
        except BctError as error:
            decision[0] = error
    if distributed.world_size() > 1:
        dist.broadcast_object_list(decision, src=0)
    if isinstance(decision[0], BctError):
        raise decision[0]
    return decision[0]


def _decide(cfg: EasyDict, identity: dict[str, Any]) -> str:
    output = Path(cfg.output)
    if not (output / "run.json").is_file():
        if (output / "model.pt").is_file() and not cfg.overwrite:
            raise BctError(
                f"{output} holds a model.pt that is not from this program",
                "choose another output=..., or pass overwrite=True to replace it",
            )
        return "fresh"
    run = read_json(output / "run.json")
    before = run["identity"]
    changed = [k for k in identity.keys() | before.keys() if identity.get(k) != before.get(k)]
    if changed:
        if cfg.overwrite:
            return "fresh"
        detail = ", ".join(
            f"{k} {before.get(k)!r} -> {identity.get(k)!r}"[:80] for k in sorted(changed)[:3]
        )
        raise BctError(
            f"{output} holds a run with other settings or inputs ({detail})",
            "choose another output=..., or pass overwrite=True to replace that run",
        )
    if cfg.resume and run["finished"]:
        return "finished"
    if cfg.resume:
        return "resume" if (output / "checkpoint.pt").is_file() else "fresh"
    if cfg.overwrite:
        return "fresh"
    what = "this finished run" if run["finished"] else "this run, unfinished"
    raise BctError(
        f"{output} already holds {what}",
        "pass resume=True to keep and continue it, or overwrite=True to start over",
    )


def _clear(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    networks = ("model.pt", "model.json", "best.pt", "best.json")
    for name in ("run.json", "checkpoint.pt", "training.log", "metrics.jsonl", *networks):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)


def finish(cfg: EasyDict, identity: dict[str, Any]) -> None:
    """Marks a run as complete."""
    if distributed.is_main():
        write_json(Path(cfg.output) / "run.json", {"finished": True, "identity": identity})


def save_model(cfg: EasyDict, backbone: nn.Module, head: nn.Module, step: int, name: str) -> None:
    """Writes model.pt or best.pt with its JSON, on rank 0."""
    if not distributed.is_main():
        return
    state = {key: value.cpu() for key, value in backbone.state_dict().items()}
    if cfg.head == "softmax":  # the reference keeps the old classifier with the network
        state |= {f"cls_fc.{key}": value.cpu() for key, value in head.state_dict().items()}
    path = Path(cfg.output) / name
    with atomic(path) as temporary:
        torch.save(state, temporary)
    write_json(
        path.with_suffix(".json"),
        {
            "network": cfg.network,
            "embedding_size": cfg.embedding_size,
            "config": cfg.name,
            "head": cfg.head,
            "num_classes": cfg.num_classes,
            "step": step,
            "sha256": sha256_file(path),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    )


def save_checkpoint(
    path: Path,
    progress: dict[str, Any],
    backbone: nn.Module,
    method: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Writes the whole state of a run; every rank has to call it.

    The head's parameters, their optimiser state and what the method cuts like them are stored in
    global class order.
    """
    head_state = {key: head.to_global(value) for key, value in head.state_dict().items()}
    method_state = method.state_dict()
    for key in method.class_sharded:
        method_state[key] = classes_to_rank0(method_state[key], method.cfg.num_classes)
    state = optimizer.state_dict()
    state["state"] = _map_head_state(state, head.to_global)
    if distributed.is_main():
        with atomic(path) as temporary:
            torch.save(
                {
                    "progress": progress,
                    "backbone": backbone.state_dict(),
                    "method": method_state,
                    "head": head_state,
                    "optimizer": state,
                    "scaler": scaler.state_dict(),
                },
                temporary,
            )
    distributed.barrier()


def load_checkpoint(
    path: Path,
    backbone: nn.Module,
    method: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> dict[str, Any]:
    """Restores a run on any number of ranks and returns its `progress`."""
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    backbone.load_state_dict(saved["backbone"])
    for key in method.class_sharded:
        saved["method"][key] = own_classes(saved["method"][key], method.cfg.num_classes)
    method.load_state_dict(saved["method"])
    head.load_state_dict({key: head.to_local(value) for key, value in saved["head"].items()})
    state = saved["optimizer"]
    state["state"] = _map_head_state(state, lambda rows: head.to_local(rows).clone())
    optimizer.load_state_dict(state)
    scaler.load_state_dict(saved["scaler"])
    return saved["progress"]


def _map_head_state(state: dict[str, Any], convert: Callable) -> dict[int, dict[str, Any]]:
    """The optimiser's per-parameter state, with the head's tensors converted. The head is the last
    parameter group; scalars such as a step count stay as they are."""
    head_parameters = set(state["param_groups"][-1]["params"])

    def converted(parameter: int, value: Any) -> Any:
        rows = parameter in head_parameters and torch.is_tensor(value) and value.dim() > 0
        return convert(value) if rows else value

    return {
        parameter: {name: converted(parameter, value) for name, value in entries.items()}
        for parameter, entries in state["state"].items()
    }
