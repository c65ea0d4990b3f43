"""A run's output directory: what it holds, whether it may be continued, and the files themselves.

config.py       the resolved config
run.json        what the run depends on, and whether it is finished
model.pt        the network's state_dict (insightface's keys), after every epoch
model.json      network, embedding size and what else is needed to use model.pt
best.pt         the same at the best verification result, when there are val_targets
checkpoints/    everything needed to resume, see bct.training.checkpoint
training.log, metrics.jsonl, tensorboard/
bad_records.txt, nonfinite_rank*.json   images that were skipped, or that a run has failed on
"""

import datetime
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from easydict import EasyDict
from torch import nn

from bct import distributed
from bct.config import base_config, save_config
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import atomic, read_json, sha256_file, write_json
from bct.models.about import view_of_config
from bct.training.checkpoint import checkpoints

# keys that do not change what is learnt
_FREE = {
    *("name", "output", "resume", "overwrite", "rec", "rec_val", "rec_backend", "num_workers"),
    *("frequent", "verbose", "val_targets", "feature_save", "num_classes", "num_image"),
    *("save_every", "keep_checkpoints", "timeout", "on_bad_record", "max_bad_rate"),
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
                _write_run(cfg, identity, finished=False)
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
    before = {**base_config(), **before}  # of a run from before a key existed
    changed = {k for k in identity if identity.get(k) != before.get(k)}
    changed |= run["identity"].keys() - identity.keys()
    if run.get("world_size") != distributed.world_size():
        changed -= {"batch_size", "gradient_acc"}  # to keep the global batch on other ranks
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
        return "resume" if checkpoints(output) else "fresh"
    if cfg.overwrite:
        return "fresh"
    what = "this finished run" if run["finished"] else "this run, unfinished"
    raise BctError(
        f"{output} already holds {what}",
        "pass resume=True to keep and continue it, or overwrite=True to start over",
    )


def _clear(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for folder in ("checkpoints", "tensorboard"):
        shutil.rmtree(output / folder, ignore_errors=True)
    networks = ("model.pt", "model.json", "best.pt", "best.json")
    reports = ("training.log", "metrics.jsonl", "bad_records.txt")
    # run.json last: without it a model.pt would not be known as ours after a crash in here
    found = [file.name for file in output.glob("nonfinite_rank*.json")]
    for name in (*found, *reports, *networks, "run.json"):
        (output / name).unlink(missing_ok=True)


def finish(cfg: EasyDict, identity: dict[str, Any]) -> None:
    """Marks a run as complete."""
    if distributed.is_main():
        _write_run(cfg, identity, finished=True)


def _write_run(cfg: EasyDict, identity: dict[str, Any], finished: bool) -> None:
    about = {"finished": finished, "world_size": distributed.world_size(), "identity": identity}
    write_json(Path(cfg.output) / "run.json", about)


def describe(cfg: EasyDict, dataset: ImageSet, embedding_size: int) -> dict[str, Any]:
    """What model.json says of a network besides its weights."""
    return {
        "embedding_size": embedding_size,
        "config": cfg.name,
        "head": cfg.head,
        "head_unit": cfg.head_unit,
        "num_classes": cfg.num_classes,
        "class_names": dataset.class_names,
        "view": view_of_config(cfg)._asdict(),
    }


def save_model(
    cfg: EasyDict,
    backbone: nn.Module,
    head: nn.Module,
    step: int,
    name: str,
    about: dict[str, Any],
) -> None:
    """Writes model.pt or best.pt with its JSON, on rank 0."""
    if not distributed.is_main():
        return
    suffix, state = "", backbone.state_dict()
    if hasattr(backbone, "exported"):
        suffix, state = backbone.exported()
    state = {key: value.cpu() for key, value in state.items()}
    if cfg.head == "softmax":  # the reference keeps the old classifier with the network
        state |= {f"cls_fc.{key}": value.cpu() for key, value in head.state_dict().items()}
    path = Path(cfg.output) / name
    with atomic(path) as temporary:
        torch.save(state, temporary)
    write_json(
        path.with_suffix(".json"),
        {
            "network": cfg.network + suffix,
            **about,
            "step": step,
            "sha256": sha256_file(path),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    )
