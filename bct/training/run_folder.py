"""A run's output directory: what it holds, whether it may be continued, and the files themselves.

config.py       the resolved config
run.json        the run's record: what it depends on, what it has written, whether it is finished
run.lock        who trains here, as long as it does
model.pt        the network's state_dict (insightface's keys), after every epoch
model.json      network, embedding size and what else is needed to use model.pt
best.pt         the same at the best validation result, see bct.validation
checkpoints/    everything needed to resume, see bct.training.checkpoint
training.log, metrics.jsonl, tensorboard/
wandb/          with using_wandb: its own folder, which nothing here removes
bad_records.txt, nonfinite_rank*.json   images that were skipped, or that a run has failed on
"""

import datetime
import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from easydict import EasyDict
from torch import nn

from bct import distributed
from bct.config import base_config, save_config
from bct.conventions import DEFAULTS, like_insightface
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import remove_leftovers, sha256_file, write_json
from bct.models.about import view_of_config
from bct.safe.tensors import save_tensors
from bct.training.checkpoint import (
    known_record,
    of_another_run,
    own_checkpoints,
    record_in_checkpoints,
)
from bct.training.heads import METRIC
from bct.training.longer import epochs_of, is_longer
from bct.training.run_lock import release_lock, take_lock
from bct.training.run_record import (
    FILES,
    FOLDERS,
    RECORD,
    RunRecord,
    lives_elsewhere,
    read_record,
)

# keys that do not change what is learnt
_FREE = {
    *("name", "output", "resume", "overwrite", "rec", "rec_val", "rec_backend", "num_workers"),
    *("strict_val", "val_data", "val_same_labels", "val_old_features", "best"),
    *("frequent", "verbose", "val_targets", "feature_save", "num_classes", "num_image"),
    *("using_wandb", "wandb_key", "wandb_entity", "wandb_project", "wandb_log_all"),
    *("wandb_resume", "suffix_run_name", "notes", "save_artifacts"),
    *("old_model", "new_model"),  # what is in them is an input, see OldModel.fingerprint
    *("save_every", "keep_checkpoints", "timeout", "on_bad_record", "max_bad_rate", "lock"),
    *("convention", "convention_why"),
}


def run_identity(cfg: EasyDict, **inputs: str) -> dict[str, Any]:
    """What a run's result depends on: config values and fingerprints of its inputs."""
    values = {key: value for key, value in cfg.items() if key not in _FREE}
    if like_insightface(cfg):  # all else that a convention decides is in the other keys
        values["convention"] = cfg.convention
    # through JSON, so that it compares equal to what is read back: tuples become lists
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in {**values, **inputs}.items()
    }


@contextmanager
def prepared_output(
    cfg: EasyDict, identity: dict[str, Any]
) -> Iterator[tuple[str, RunRecord | None]]:
    """Locks the output for as long as the run lives, and yields how it starts and its record.

    Rank 0 decides for all: "fresh", "resume" or "finished". Nothing is replaced without
    overwrite=True, and nothing at all that no run.json of ours names.

    Raises BctError when another process trains there, or when the folder holds a run that may
    neither be continued nor replaced, or somebody else's files.
    """
    output, lock, decision = Path(cfg.output), None, [None]
    try:
        if distributed.is_main():
            try:
                output.mkdir(parents=True, exist_ok=True)
                try:
                    lock = take_lock(output) if cfg.lock else None
                    decision[0] = _prepare(cfg, identity)
                except OSError as error:
                    decision[0] = _reused(cfg, identity, error)
            except (BctError, OSError) as error:
                decision[0] = error
        if distributed.world_size() > 1:
            dist.broadcast_object_list(decision, src=0)
        if isinstance(decision[0], Exception):
            raise decision[0]
        yield decision[0]
    finally:
        if lock is not None:
            release_lock(output, lock)


def _reused(cfg: EasyDict, identity: dict[str, Any], error: OSError) -> tuple[str, RunRecord]:
    """A finished run may be reused where nothing can be written; raises the error otherwise."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not cfg.resume:
        raise error
    start, record = _decide(cfg, identity)
    if start != "finished":
        raise error
    return start, record


def _prepare(cfg: EasyDict, identity: dict[str, Any]) -> tuple[str, RunRecord]:
    output, ranks = Path(cfg.output), distributed.world_size()
    start, record = _decide(cfg, identity)
    if start == "finished":
        return start, record
    if record is not None:
        _refuse_shared(record)
    if start == "fresh":
        _refuse_foreign(output, record)
        if record is not None:
            _clear(record)
        record = RunRecord(output, identity, ranks, files=list(FILES))
    for name in record.files:  # a checkpoint that was being written may never be written again
        if (output / name).parent.is_dir():
            remove_leftovers(output / name)
    before, now = epochs_of(record.identity), epochs_of(identity)
    if before < now and start == "resume":
        record.longer.append({"before": before, "now": now, "step": None})
    record.identity, record.world_size = identity, ranks  # a resumed run may be cut in another way
    record.finished = False
    record.name(f"nonfinite_rank{rank}.json" for rank in range(ranks))
    record.write()
    save_config(cfg, output / "config.py")
    return start, record


def goes_on(cfg: EasyDict, identity: dict[str, Any]) -> bool:
    """Whether a start would continue the run in the output from a checkpoint, or reuse it; only
    looks. prepared_output decides anew."""
    if not cfg.resume:
        return False
    record = known_record(Path(cfg.output))
    if record is None:
        return False
    longer = is_longer(cfg, record, identity)
    if _changed(record, identity, longer):
        return False
    return bool(own_checkpoints(record)) or _is_done(record, longer)


def _decide(cfg: EasyDict, identity: dict[str, Any]) -> tuple[str, RunRecord | None]:
    """How to start, and the record of the run that is there, if there is one."""
    output = Path(cfg.output)
    try:
        record = read_record(output)
    except BctError as damage:
        return _without_record(cfg, identity, damage)
    if record is None:
        return _without_record(cfg, identity)
    longer = is_longer(cfg, record, identity)
    changed = _changed(record, identity, longer)
    if changed and not cfg.overwrite:
        raise BctError(
            f"{output} holds a run with other settings or inputs ({changed})",
            "pass resume=True to make it longer, " * _only_longer(record, identity)
            + "pass convention=bct to read the config as that run did, "
            * _only_convention(cfg, record, identity)
            + "choose another output=..., or pass overwrite=True to replace that run",
        )
    if cfg.resume and not changed:
        if _is_done(record, longer):
            return "finished", record
        if own_checkpoints(record):
            return "resume", record
        if record.finished or record.step:
            raise BctError(
                f"{output} holds a run of {record.step} steps, but its checkpoints are gone",
                "bring checkpoints/ back, or choose another output=...",
            )
        return "fresh", record
    if cfg.overwrite:
        return "fresh", record
    what = "this finished run" if record.finished else "this run, unfinished"
    raise BctError(
        f"{output} already holds {what}",
        "pass resume=True to keep and continue it, or overwrite=True to start over",
    )


def _is_done(record: RunRecord, longer: bool) -> bool:
    """Whether a run has nothing left to do."""
    return record.finished and not longer and (record.output / "model.pt").is_file()


def _changed(record: RunRecord, identity: dict[str, Any], longer: bool = False) -> str:
    """What of the identity differs, for a message; "" if it is the same run, or a longer one."""
    before = {**base_config(), **record.identity}  # of a run from before a key existed
    changed = {key for key in identity if identity.get(key) != before.get(key)}
    changed |= record.identity.keys() - identity.keys()
    changed -= {"num_epoch"} if longer else set()
    if record.world_size != distributed.world_size():
        changed -= {"batch_size", "gradient_acc"}  # to keep the global batch on other ranks
    return ", ".join(
        f"{key} {before.get(key)!r} -> {identity.get(key)!r}"[:80] for key in sorted(changed)[:3]
    )


def _only_longer(record: RunRecord, identity: dict[str, Any]) -> bool:
    """Whether more epochs are all that differs."""
    more = 0 < epochs_of(record.identity) < epochs_of(identity)
    return more and not _changed(record, identity, longer=True)


def _only_convention(cfg: EasyDict, record: RunRecord, identity: dict[str, Any]) -> bool:
    """Whether a run differs in no more than what its config's convention has brought: it is from
    before there were conventions, or was started with another."""
    theirs = {key: value for key, value in DEFAULTS[cfg.convention].items() if key in identity}
    of_bct = {key: base_config()[key] for key in theirs}
    changed = any(identity[key] != record.identity.get(key) for key in theirs)
    as_bct = {key: value for key, value in identity.items() if key != "convention"}
    return changed and not _changed(record, {**as_bct, **of_bct})


def _without_record(
    cfg: EasyDict, identity: dict[str, Any], damage: BctError | None = None
) -> tuple[str, RunRecord | None]:
    """The same where run.json is missing or damaged: checkpoints know their run."""
    output, path = Path(cfg.output), Path(cfg.output) / RECORD
    record = record_in_checkpoints(output)
    what = damage.what if damage else f"{path} is gone"
    if record is None:
        if damage is not None:
            raise damage
        return "fresh", None
    changed = _changed(record, identity, is_longer(cfg, record, identity))
    if not cfg.resume or changed:
        kept = "the checkpoints beside it are intact"
        raise BctError(
            f"{what}; {kept}" + f", of a run with other settings ({changed})" * bool(changed),
            "pass resume=True with that run's settings: run.json is then made again from them; "
            "or choose another output=...",
        )
    if path.exists():
        os.replace(path, _free_name(path))
    record.write()
    distributed.say(f"warning: {what}: made again from the run's checkpoints")
    return "resume", record


def _free_name(path: Path) -> Path:
    """Where a damaged file is kept, beside others that are kept already."""
    names = (path.with_name(f"{path.name}.damaged{k or ''}") for k in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _refuse_shared(record: RunRecord) -> None:
    """Raises BctError for a copy of a run's folder whose links lead to the same files."""
    for folder in FOLDERS:
        if (record.output / folder).is_symlink() and lives_elsewhere(record):
            raise BctError(
                f"{record.output} is a copy of {record.home}, and both have one {folder}/",
                f"give the copy a {folder}/ of its own, or go on in {record.home}",
            )


def _refuse_foreign(output: Path, record: RunRecord | None) -> None:
    """Raises BctError for the first file that a run would write and that no record names."""
    there = [RECORD, *FILES, *(path.name for path in output.glob("nonfinite_rank*.json"))]
    there = [name for name in there if os.path.lexists(output / name)]
    for folder in FOLDERS:
        if os.path.lexists(output / folder) and not (output / folder).is_dir():
            there.append(folder)
        there += [f"{folder}/{path.name}" for path in (output / folder).glob("*")]
    for name in there:
        if record is None or not (name == RECORD or record.owns(name)):
            raise BctError(
                f"{output} holds {name}, which is not from this program: no run.json names it",
                "choose another output=..., or move that file away",
            )
        if name.startswith("checkpoints/") and of_another_run(output / name, record):
            raise BctError(
                f"{output / name} is another run's checkpoint",
                "choose another output=..., or give this one a checkpoints/ of its own",
            )


def _clear(record: RunRecord) -> None:
    """Removes what a run has written. OSError if something can't be removed."""
    output = record.output
    mine = [name for name in record.files if os.path.lexists(output / name)]
    mine += [
        f"{folder}/{path.name}"
        for folder in FOLDERS
        for path in (output / folder).glob("*")
        if record.owns(f"{folder}/{path.name}") and f"{folder}/{path.name}" not in mine
    ]
    for name in mine:
        (output / name).unlink()
    for folder in FOLDERS:
        if (output / folder).is_dir() and not (output / folder).is_symlink():
            (output / folder).rmdir()
    (output / RECORD).unlink()  # last: after a crash in here it still names the rest


def describe(cfg: EasyDict, dataset: ImageSet, embedding_size: int) -> dict[str, Any]:
    """What model.json says of a network besides its weights."""
    return {
        "embedding_size": embedding_size,
        "config": cfg.name,
        "head": cfg.head,
        "head_unit": cfg.head_unit,
        "num_classes": cfg.num_classes,
        "class_names": dataset.class_names,
        "view": view_of_config(cfg).entries,
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
        own = {k: v for k, v in head.state_dict().items() if not k.startswith(METRIC)}
        state |= {f"cls_fc.{key}": value.cpu() for key, value in own.items()}
    path = Path(cfg.output) / name
    save_tensors(path, state)
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
