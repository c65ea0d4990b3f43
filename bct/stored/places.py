"""Which place a config's artefacts have, and the commands that make them."""

import shlex
from pathlib import Path

from easydict import EasyDict

from bct.errors import BctError
from bct.scenarios import artefact_name
from bct.stored.artefacts import KINDS, Place, place_of_model, place_of_sd, was_imported


def side_of(kind: str) -> str:
    """Which model an artefact is of, as config keys begin: old_config, new_model, ..."""
    return "new" if kind == "new_embedding" else "old"


def unnamed(cfg: EasyDict, kind: str) -> str | None:
    """The key that is missing to say which model an artefact is of."""
    side = side_of(kind)
    keys = ("rec",) if cfg.get(f"{side}_model") else ("scenario", f"{side}_config", "shard")
    return next((key for key in keys if cfg.get(key) is None), None)


def place_of(cfg: EasyDict, kind: str, folder: str | Path = "configs") -> Place:
    """Where the artefacts of this kind's model are, for the training set of a resolved config.

    Args:
        folder: where the files of old_config and new_config are, for the commands.
    """
    side = side_of(kind)
    if cfg.get(f"{side}_model"):
        return place_of_model(cfg.get(f"{side}_model"), cfg.rec)
    name = cfg[f"{side}_config"]
    sd = artefact_name(name, cfg.shard)
    return place_of_sd(sd, cfg.feature_save, shlex.quote(str(Path(folder) / f"{name}.py")))


def artefact_commands(
    cfg: EasyDict, kinds: tuple[str, ...], folder: str | Path = "configs"
) -> list[str]:
    """The commands that make what a method needs, in order, each once; none for what was imported.

    Args:
        cfg: the method's resolved config; kinds whose path it gives are left out.
        kinds: what the method needs, keys of KINDS.
        folder: where the files of old_config and new_config are.

    Raises BctError for a kind that no tool makes, and without an old_config or new_config.
    """
    kinds = [kind for kind in kinds if not cfg.get(kind)]
    if any(kind != "new_embedding" for kind in kinds):
        kinds = ["old_embedding", *kinds]  # the other tools read them
    commands = []
    for kind in kinds:
        if kind not in KINDS:
            raise BctError(
                f"no tool makes artefacts of the kind {kind!r}",
                f"those there are tools for: {', '.join(KINDS)}",
            )
        if missing := unnamed(cfg, kind):
            raise BctError(
                f"{kind} is of a model that the config {cfg.name} does not name: {missing} is not "
                "set",
                "set old_model or old_config; new_model or new_config for what is of a new model "
                "trained alone",
            )
        place, T = place_of(cfg, kind, folder), cfg.get("T", 0.9)
        command = place.command(kind, T)
        if command not in commands and not was_imported(place.path(kind, T)):
            commands.append(command)
    return commands
