"""Weights & Biases behind `using_wandb`, with insightface's config keys.

It gets every figure of metrics.jsonl under its own name, and these under insightface's, so that
runs of both lie in one chart:

    Loss/Train Loss          loss            Process/Step    step
    Acc/val-Acc2 <set>       <set>           Process/Epoch   epoch

The package wandb is imported when a run uses it. Its files lie in <output>/wandb, or where
WANDB_DIR says; WANDB_MODE=offline sends nothing. The key is given to wandb and written nowhere.
"""

import datetime
import logging
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easydict import EasyDict

from bct import distributed
from bct.config import SECRET
from bct.errors import BctError

_INSIGHTFACE = {"loss": "Loss/Train Loss", "epoch": "Process/Epoch"}


def check_wandb(cfg: EasyDict) -> None:
    """Raises BctError if the config asks for wandb and it is not installed."""
    if not _wanted(cfg):
        return
    try:
        import wandb
    except ImportError:
        wandb = None
    if not hasattr(wandb, "init"):  # a folder called wandb can be imported, too
        raise BctError(
            "using_wandb=True, and the package wandb is not installed",
            "install the extra: pip install -e '.[wandb]', or leave using_wandb out",
        )


def _wanted(cfg: EasyDict) -> bool:
    return cfg.using_wandb and (distributed.is_main() or cfg.wandb_log_all)


def open_wandb(cfg: EasyDict, run: str) -> "WandbRun | None":
    """A run of wandb if the config wants one of this rank: of rank 0, or of all with wandb_log_all.

    Args:
        run: a name that stays the same when the training is resumed; with wandb_resume it is the id
            that wandb goes on with.

    Raises BctError if wandb does not start: a wrong key or project, no network.
    """
    if not _wanted(cfg):
        return None
    import wandb

    rank = distributed.rank()
    name = f"{datetime.datetime.now():%y%m%d_%H%M}_GPU{rank}"
    name += f"_{cfg.suffix_run_name}" if cfg.suffix_run_name else ""
    try:
        with _without_secrets_in_argv():  # wandb notes a run's command line
            started = wandb.init(
                entity=cfg.wandb_entity,
                project=cfg.wandb_project,
                name=name,
                notes=cfg.notes,
                config={key: value for key, value in cfg.items() if key not in SECRET},
                dir=os.environ.get("WANDB_DIR", cfg.output),
                id=f"{run}-{rank}" if cfg.wandb_resume else None,
                resume="allow" if cfg.wandb_resume else None,
                # git: changes of a config file, with its key, would be noted
                settings=wandb.Settings(
                    api_key=cfg.wandb_key, console="off", disable_git=True, save_code=False
                ),
            )
    except Exception as error:  # of many kinds: its own, requests', pydantic's
        raise BctError(
            f"Weights & Biases does not start ({_reason(error, cfg.wandb_key)})",
            "check wandb_key, wandb_entity and wandb_project, or set WANDB_MODE=offline",
        ) from None
    return WandbRun(started, cfg, name)


class WandbRun:
    """A run of wandb. Once it fails, training goes on without it, which is said."""

    def __init__(self, run: Any, cfg: EasyDict, name: str):
        self.run, self.name, self.artifacts = run, name, cfg.save_artifacts
        self.key = cfg.wandb_key
        self.sets = {Path(target).name.removesuffix(".bin") for target in cfg.val_targets}

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Sends values under their names, and insightface's."""
        more = {_INSIGHTFACE[key]: values[key] for key in _INSIGHTFACE.keys() & values.keys()}
        more |= {f"Acc/val-Acc2 {key}": values[key] for key in self.sets & values.keys()}
        if "loss" in values:
            more["Process/Step"] = step
        self._send(lambda run: run.log({**values, **more}, step=step))

    def model(self, file: Path, when: str) -> None:
        """Keeps a model as an artifact, with save_artifacts. when: "E3", "Final"."""
        if not self.artifacts:
            return

        def send(run: Any) -> None:
            import wandb

            kept = wandb.Artifact(f"{self.name}_{when}", type="model")
            kept.add_file(str(file), file.name)
            run.log_artifact(kept)

        self._send(send)

    def finish(self, failed: bool) -> None:
        self._send(lambda run: run.finish(exit_code=int(failed)))

    def _send(self, send: Callable[[Any], object]) -> None:
        if self.run is None:
            return
        try:
            send(self.run)
        except Exception as error:
            self.run = None
            reason = _reason(error, self.key)
            logging.warning("Weights & Biases fails (%s): the run goes on without it", reason)


def _reason(error: Exception, key: str | None) -> str:
    """An error as a message says it: on one line, without the key that it may quote."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said.replace(key, '***') if key else said}"[:200]


@contextmanager
def _without_secrets_in_argv():
    whole = sys.argv
    sys.argv = [word for word in whole if word.partition("=")[0] not in SECRET]
    try:
        yield
    finally:
        sys.argv = whole
