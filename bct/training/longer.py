"""A run that is continued for more epochs than it was started with."""

import logging
import os
from typing import Any

from easydict import EasyDict

from bct.config import base_config
from bct.errors import BctError
from bct.training.optimizer import learning_rate
from bct.training.run_record import RunRecord


def epochs_of(identity: dict[str, Any]) -> int:
    return identity.get("num_epoch") or 0


def is_longer(cfg: EasyDict, record: RunRecord, identity: dict[str, Any]) -> bool:
    """Whether resume=True asks for more epochs than the run in the output was to have.

    Not with overwrite=True, which replaces a run of other settings; and not in a process that
    torchrun has started again, whose resume=True nobody has asked for.

    Raises BctError for fewer epochs.
    """
    if not cfg.resume or cfg.overwrite or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return False
    before, now = epochs_of(record.identity), epochs_of(identity)
    if 0 < now < before and _differs_in_epochs_alone(record.identity, identity):
        raise BctError(
            f"{record.output} holds a run of {before} epochs: it can be made longer, not {now}",
            f"pass num_epoch={before} or more, or choose another output=...",
        )
    return 0 < before < now


def _differs_in_epochs_alone(before: dict[str, Any], now: dict[str, Any]) -> bool:
    before = {**base_config(), **before}
    return all(before.get(key) == now[key] for key in now if key != "num_epoch")


def say_longer(record: RunRecord, cfg: EasyDict, step: int, steps_per_epoch: int) -> None:
    """Logs what the schedule does where a run goes on for more epochs, until its first checkpoint
    from then on; and writes down at which step that was."""
    if not record.longer or step > (record.longer[-1]["step"] or step):
        return
    last = record.longer[-1]
    last["step"] = step
    record.write()
    before = EasyDict(cfg, num_epoch=last["before"])
    rates = [learning_rate(said, step, steps_per_epoch) for said in (before, cfg)]
    warmed = cfg.warmup_epoch < before.num_epoch
    if step >= steps_per_epoch * before.num_epoch and not cfg.decay_epoch and warmed:
        ends = 1.0 if cfg.lr_policy == "constant" else cfg.lr_floor
        rates[0] = cfg.lr * ends
    jump = f"it goes on at {rates[1]:g}"
    if rates[0] != rates[1]:
        jump = f"{rates[0]:g} by the shorter schedule, it is {rates[1]:g} by the longer one"
    logging.info(
        f"longer: {last['now']} epochs for {last['before']}, from step {step} on; learning rate: "
        f"{jump}{_statistics(cfg, step, steps_per_epoch)}"
    )


def _statistics(cfg: EasyDict, step: int, steps_per_epoch: int) -> str:
    share = cfg.freeze_statistics_at
    if share is None or step >= steps_per_epoch * cfg.num_epoch * share:
        return ""
    until = steps_per_epoch * cfg.num_epoch * share
    return f"; batch norms learn their statistics until step {until:.0f}"
