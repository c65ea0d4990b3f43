"""Configs: EasyDict `.py` files merged over configs/base.py, overridden by key=value arguments."""

import ast
import difflib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from easydict import EasyDict

from bct.distributed import say
from bct.errors import BctError
from bct.files import IN_CLONE, PACKAGE, ROOT, write_text
from bct.scenarios import SCENARIOS, new_shard, shard_file

# insightface keys that have no effect here: configs that set them load, with a warning
NO_OP = {
    *("dali", "dali_aug", "save_all_states", "loss", "notes", "suffix_run_name", "save_artifacts"),
    *("using_wandb", "wandb_key", "wandb_entity", "wandb_project", "wandb_log_all", "wandb_resume"),
}
PATHS = ("rec", "rec_val", "feature_save", "output", "n2o_map")
CHOICES = {
    "head": ("margin", "softmax", "none"),
    "pixels": ("face", "imagenet"),
    "augment": ("mirror", "resized_crop", "shift", "none"),
    "dimensions": ("equal", "leading", "zero_pad"),
    "lr_policy": ("poly", "cosine"),
    "parity": ("corrected", "published"),
    "optimizer": ("sgd", "adam", "adamw"),
    "amp": (None, "bf16", "fp16", "off"),
    "rec_backend": ("native", "mxnet"),
    "on_bad_record": ("error", "skip"),
    "scenario": (None, *SCENARIOS),
}
TYPES = {  # of the keys whose default is None
    **dict.fromkeys(("num_classes", "num_image", "num_epoch"), int),
    **dict.fromkeys(("rec", "rec_val", "output", "shard", "old_config", "new_config"), str),
    **dict.fromkeys(("n2o_map",), str),
    "freeze_statistics_at": float,
    "fp16": bool,
    "decay_epoch": list,
}
POSITIVE = ("embedding_size", "batch_size", "gradient_acc", "frequent", "verbose", "scale", "lr")
POSITIVE += ("save_every", "keep_checkpoints", "timeout", "image_size")


def load_config(
    path: str | Path,
    overrides: list[str] = (),
    method_defaults: dict[str, Any] | None = None,
    lenient: bool = False,
) -> EasyDict:
    """Reads a config file and resolves it.

    Args:
        path: the `.py` file, with or without suffix, relative to here or to a clone's own folder.
        overrides: "key=value" strings; values are Python literals, anything else is a string.
        method_defaults: keys that a method adds, with their defaults.
        lenient: let the file's unknown keys pass unread: of a method the caller does not know.

    Returns:
        An EasyDict with every key of configs/base.py and of the method; `name` is the file's stem,
        paths are absolute, `rec` names the shard's own file when `shard` or `scenario` is given.

    Raises:
        BctError: no such file, an unknown key, a value of the wrong type or not among the choices.
    """
    file = find_config(path)
    known = dict(base_config(), **(method_defaults or {}))
    given = dict(execute(file))
    overridden = dict(_parse(text) for text in overrides)
    no_op = sorted((given.keys() | overridden.keys()) & NO_OP - known.keys())
    if no_op:
        say(f"warning: {file.name}: no effect here: {', '.join(no_op)}")

    cfg = EasyDict(known)
    for source, values, base in (
        (str(file), given, ROOT),
        ("the command line", overridden, Path.cwd()),
    ):
        for key, value in values.items():
            if key not in known and (key in NO_OP or (lenient and values is given)):
                continue
            _check(key, value, known, source)
            if key in PATHS and value is not None and value != "synthetic":
                value = str((base / os.path.expanduser(_file_name(value))).absolute())
            cfg[key] = value
    for key in POSITIVE:
        if cfg[key] <= 0:
            raise BctError(f"{key} = {cfg[key]} is not positive", f"give {key} a value above 0")
    cfg.name = file.stem
    cfg.feature_save = str(ROOT / cfg.feature_save)
    cfg.output = cfg.output or str(ROOT / "work_dirs" / cfg.name)
    if cfg.scenario and cfg.old_config and cfg.shard is None:
        cfg.shard = new_shard(cfg.scenario, cfg.old_config)
    if cfg.rec and cfg.shard:
        cfg.rec = str(shard_file(cfg.rec, cfg.shard))
    return cfg


def base_config() -> dict[str, Any]:
    """Every key that all runs have, with its default."""
    return dict(execute((ROOT if IN_CLONE else PACKAGE) / "configs" / "base.py"))


def _file_name(text: str) -> str:
    """A path as this system's calls take it: configs are UTF-8, the locale may be another."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def find_config(path: str | Path) -> Path:
    """The config file a user means: as given, under a clone's folder, with `.py` left out."""
    for base in (Path.cwd(), ROOT):
        for file in (base / path, base / f"{path}.py"):
            if file.is_file():
                return file.resolve()
    raise BctError(f"there is no config file {path}", "check the path; configs/ holds the examples")


def require(cfg: EasyDict, *keys: str) -> None:
    """Raises BctError for the first of these keys that has no value."""
    for key in keys:
        if cfg[key] is None:
            raise BctError(
                f"config {cfg.name} does not set {key}", f"set it there, or pass {key}=... here"
            )


def save_config(cfg: EasyDict, path: str | Path) -> None:
    """Writes the resolved config as a config file."""
    keys = "\n".join(f"config.{key} = {value!r}" for key, value in cfg.items() if key != "name")
    write_text(
        path,
        f'"""{cfg.name}, resolved."""\n\nfrom easydict import EasyDict as edict\n\n'
        f"config = edict()\n{keys}\n",
    )


def execute(file: Path) -> EasyDict:
    """The `config` that a config file makes. Raises BctError when it does not run or makes none."""
    try:
        namespace = runpy.run_path(str(file))
    except BctError:
        raise
    except Exception as error:  # a config is code: whatever it raises is the user's to see
        reason = " ".join(str(error).split())
        raise BctError(
            f"{file} does not run: {type(error).__name__}: {reason}", "mend the config file"
        ) from error
    config = namespace.get("config")
    if not isinstance(config, dict):
        raise BctError(f"{file} defines no `config`", "begin it with: config = EasyDict()")
    return config


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise BctError(f"argument {text!r} is not key=value", "write overrides as lr=0.05")
    if value in CHOICES.get(key, ()):
        return key, value  # "none" may be one
    literal = {"true": True, "false": False, "none": None}.get(value.lower())
    if literal is not None or value.lower() == "none":
        return key, literal
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return key, value


def _check(key: str, value: Any, known: dict[str, Any], source: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "configs/base.py lists the keys"
        raise BctError(f"{source}: unknown config key {key!r}", hint)
    if key in CHOICES and value not in CHOICES[key]:
        names = ", ".join(repr(choice) for choice in CHOICES[key])
        raise BctError(f"{source}: {key} = {value!r} is not possible", f"choose from {names}")
    if value is None or (known[key] is None and key not in TYPES):
        return
    wanted = TYPES.get(key, type(known[key]))
    accepted = {float: (int, float), list: (list, tuple), tuple: (list, tuple)}.get(wanted, wanted)
    fits = isinstance(value, accepted) and (wanted is bool or not isinstance(value, bool))
    if key in PATHS and fits and "\0" in value:
        raise BctError(f"{source}: {key} = {value!r} is no path", "take the NUL byte out of it")
    if not fits:
        raise BctError(
            f"{source}: {key} = {value!r} is a {type(value).__name__}",
            f"it has to be a {wanted.__name__}",
        )


def command_line(default: str | Path | None = None) -> tuple[str | Path, list[str]]:
    """[config] [key=value ...] from sys.argv. Raises BctError on anything else."""
    arguments = sys.argv[1:]
    configs = [a for a in arguments if "=" not in a]
    if any(a in ("-h", "--help") for a in arguments):
        script = Path(sys.argv[0]).name
        say(f"usage: {script} [config.py] [key=value ...]   (configs/base.py explains the keys)")
        sys.exit(0)
    if len(configs) > 1 or any(a.startswith("-") for a in arguments):
        raise BctError(
            f"can't read the arguments {' '.join(arguments)}", "give one config and key=value pairs"
        )
    if not configs and default is None:
        raise BctError("no config given", "name one, e.g. configs/f128_r18_softmax_class30.py")
    if not configs:
        say(
            f"no config given: running the demo configuration {default} "
            "(`make demo` makes its data and old model)"
        )
    return (configs[0] if configs else default), [a for a in arguments if "=" in a]
