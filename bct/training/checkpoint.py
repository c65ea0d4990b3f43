"""Checkpoints: the whole state of a run, whole on disk or not there at all.

checkpoints/step_00012000.pt is written under another name, flushed to the disk and renamed, and
older ones are deleted after that: the last good one outlives a crash or a full disk at any moment.
Loading checks every byte against the CRC-32 in the file and falls back on the one before.

A checkpoint holds its run's record, so that it is never taken for another run's, and a lost
run.json comes back from it. Then there are the parameters, class centres and what is cut like them
in global class order, the optimiser, the loss scaler, the buffers of every rank (batch-norm
statistics differ), and the progress. Random streams are not in it: each is a function of the seed,
the step and the rank.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bct import distributed
from bct.errors import BctError
from bct.safe.tensors import read_tensors, save_tensors
from bct.training.class_shards import own_classes
from bct.training.heads import METRIC
from bct.training.run_record import RunRecord, lives_elsewhere, read_record, record_of

_NAME = re.compile(r"step_(\d+)\.pt")


def checkpoints(output: str | Path) -> list[Path]:
    """All checkpoints in an output, whosever they are, the latest step first."""
    files = [f for f in (Path(output) / "checkpoints").glob("step_*.pt") if _NAME.fullmatch(f.name)]
    return sorted(files, key=lambda f: int(_NAME.fullmatch(f.name)[1]), reverse=True)


def own_checkpoints(record: RunRecord) -> list[Path]:
    """Those that a run's record names, the last written first."""
    files = [record.output / name for name in record.files if name.startswith("checkpoints/")]
    return [file for file in reversed(files) if file.is_file()]


def of_another_run(path: Path, record: RunRecord) -> bool:
    """Whether a checkpoint says that it is another run's; a damaged one says nothing."""
    try:
        saved = read_tensors(path, verify=False, mapped=True)
    except BctError:
        return False
    return not _is_of(saved, record)


def record_in_checkpoints(output: Path) -> RunRecord | None:
    """The record of the run whose undamaged checkpoint is the latest; None if there is none.

    Its files are those of the record and all checkpoints of that run.
    """
    found = None
    for path in checkpoints(output):
        try:
            said = read_tensors(path).get("record")
            record = record_of(said, output, f"{path} is not ours", "")
            if lives_elsewhere(record):
                continue
        except (BctError, AttributeError):
            continue
        found = found or record
        if record.run == found.run:
            found.name([f"checkpoints/{path.name}"])
    if found is not None:  # the latest step last
        found.name(reversed([n for n in found.files if n.startswith("checkpoints/")]))
    return found


def known_record(output: Path) -> RunRecord | None:
    """The record of the run in a folder, from its checkpoints where run.json is gone or damaged;
    None where there is none. Only looks."""
    try:
        record = read_record(output)
    except BctError:
        record = None
    return record or record_in_checkpoints(output)


def _is_of(saved: Any, record: RunRecord) -> bool:
    """Whether the run has written this checkpoint; those of former versions have no record."""
    said = saved.get("record") if isinstance(saved, dict) else None
    return said is None or (isinstance(said, dict) and said.get("run") == record.run)


def save_checkpoint(
    record: RunRecord,
    progress: dict[str, Any],
    backbone: nn.Module,
    method: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    keep: int = 2,
) -> None:
    """Writes the whole state of a run; every rank has to call it.

    Args:
        record: of the run; it names the checkpoint before it is written.
        progress: plain numbers, among them "step".
        keep: how many checkpoints are left, this one included.

    Raises:
        BctError: it can't be written; those that were there still are. Another run's checkpoint
            has its name.
    """
    head_state = {
        key: value.cpu() if key.startswith(METRIC) else head.to_global(value)
        for key, value in head.state_dict().items()
    }
    method_state = method.state_dict()
    for key in method.class_sharded:
        method_state[key] = distributed.shares_to_rank0(method_state[key], method.cfg.num_classes)
    state = optimizer.state_dict()
    state["state"] = _map_head_state(state, head.to_global)
    buffers = _buffers_of_ranks(backbone, method)
    if distributed.is_main():
        name = f"checkpoints/step_{progress['step']:08d}.pt"
        path, kept = record.output / name, own_checkpoints(record)
        if path.exists() and (name not in record.files or of_another_run(path, record)):
            raise BctError(
                f"{path} is not this run's checkpoint",
                "move it away, or give this run a checkpoints/ of its own; then resume=True",
            )
        record.name([name])
        record.write()
        whole = {
            "record": record.said(),
            "progress": {**progress, "world_size": distributed.world_size()},
            "backbone": backbone.state_dict(),
            "method": method_state,
            "head": head_state,
            "optimizer": state,
            "scaler": scaler.state_dict(),
            "buffers": buffers,
        }
        try:
            save_tensors(path, whole)
        except BctError as error:
            last = next(iter(kept), None)
            intact = f"{last} is intact" if last else "there is none yet"
            raise BctError(
                f"{error.what}; {intact}",
                "free some space or mend the folder, then go on with resume=True",
            ) from None
        _forget(record, path, progress["step"], keep)
    distributed.barrier()


def _forget(record: RunRecord, written: Path, step: int, keep: int) -> None:
    """Removes a run's checkpoints but the one just written and keep - 1 before it. Those of later
    steps go first: they could not be read, or the run would not be here."""

    def staleness(path: Path) -> tuple[bool, bool, int]:
        of_step = int(_NAME.fullmatch(path.name)[1])
        return path != written, of_step > step, -of_step

    for path in sorted(own_checkpoints(record), key=staleness)[keep:]:
        if not of_another_run(path, record):
            path.unlink()
        record.files.remove(f"checkpoints/{path.name}")
    record.step = step
    record.write()


def load_checkpoint(
    record: RunRecord,
    backbone: nn.Module,
    method: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> dict[str, Any]:
    """Restores a run from its latest good checkpoint, on any number of ranks.

    Returns:
        Its `progress`, with the `world_size` it was saved by. On another one every rank starts
        from the mean of the ranks' buffers (of rank 0's where they are no real numbers).

    Raises:
        BctError: no checkpoint is whole, or it is of another network or data set.
    """
    chosen: list[Any] = [None]
    if distributed.is_main():
        chosen[0] = _latest_whole(record)
    if distributed.world_size() > 1:
        dist.broadcast_object_list(chosen, src=0)
    if isinstance(chosen[0], BctError):
        raise chosen[0]
    saved = read_tensors(chosen[0], verify=False)
    for key in method.class_sharded:
        saved["method"][key] = own_classes(saved["method"][key], method.cfg.num_classes)
    backbone.load_state_dict(saved["backbone"])
    method.load_state_dict(saved["method"])
    _restore_buffers(saved["buffers"], backbone, method)
    head_state = {
        key: value if key.startswith(METRIC) else head.to_local(value)
        for key, value in saved["head"].items()
    }
    head.load_state_dict(head_state)
    state = saved["optimizer"]
    for group, ours in zip(state["param_groups"], optimizer.param_groups, strict=True):
        group.setdefault("name", ours["name"])  # of a checkpoint from before groups had names
    state["state"] = _map_head_state(state, lambda rows: head.to_local(rows).clone())
    optimizer.load_state_dict(state)
    scaler.load_state_dict(saved["scaler"])
    return saved["progress"]


def _latest_whole(record: RunRecord) -> Path | BctError:
    """On rank 0: the run's latest checkpoint that is undamaged."""
    problem = BctError(
        f"{record.output} has no checkpoint",
        "bring checkpoints/ back, or choose another output=...",
    )
    for path in own_checkpoints(record):
        try:
            saved = read_tensors(path)
            if not isinstance(saved, dict) or "buffers" not in saved:
                raise BctError(f"{path} is not a checkpoint of ours", "move it out of that folder")
            if not _is_of(saved, record):
                raise BctError(f"{path} is another run's checkpoint", "move it out of that folder")
            return path
        except BctError as error:
            logging.warning("%s; trying the one before", error.what)
            # not the error itself: its traceback would keep the run's loader and workers alive
            problem = BctError(error.what, error.do)
    return problem


def _buffers_of_ranks(*modules: nn.Module) -> list[list[dict[str, torch.Tensor]]]:
    """[rank][module]: the saved buffers that are each rank's own, on the CPU."""
    return distributed.all_gather_object([_own_buffers(module) for module in modules])


def _own_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    own = {name for name, _ in module.named_buffers()} - set(getattr(module, "class_sharded", ()))
    return {key: value.cpu() for key, value in module.state_dict().items() if key in own}


def _restore_buffers(saved: list[list[dict[str, torch.Tensor]]], *modules: nn.Module) -> None:
    same = len(saved) == distributed.world_size()
    for which, module in enumerate(modules):
        for key, first in saved[0][which].items():
            everyone = [of_rank[which][key] for of_rank in saved]
            if same:
                value = everyone[distributed.rank()]
            else:
                value = torch.stack(everyone).mean(0) if first.is_floating_point() else first
            module.get_buffer(key).copy_(value)


def _map_head_state(state: dict[str, Any], convert: Callable) -> dict[int, dict[str, Any]]:
    """The optimiser's per-parameter state, with the head's tensors converted; scalars such as a
    step count stay as they are."""
    head_parameters = {p for g in state["param_groups"] if g["name"] == "head" for p in g["params"]}

    def converted(parameter: int, value: Any) -> Any:
        rows = parameter in head_parameters and torch.is_tensor(value) and value.dim() > 0
        return convert(value) if rows else value

    return {
        parameter: {name: converted(parameter, value) for name, value in entries.items()}
        for parameter, entries in state["state"].items()
    }
