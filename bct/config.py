"""Configs: EasyDict `.py` files merged over configs/base.py, overridden by key=value arguments."""

import dataclasses
import difflib
import os
import runpy
from pathlib import Path
from typing import Any

from easydict import EasyDict

from bct.command import ADVICE, Parser, some_text
from bct.conventions import convention_of, defaults_of, in_our_words
from bct.distributed import say
from bct.errors import BctError
from bct.files import IN_CLONE, PACKAGE, ROOT, write_text
from bct.keys import Key, known_keys, plain, shown
from bct.scenarios import new_shard, shard_file

# insightface keys that have no effect here: configs that set them load, with a warning
NO_OP = {"dali", "dali_aug", "save_all_states", "loss"}
SECRET = ("wandb_key",)  # keys that no file of a run holds


_UNSAVED = ("name", "convention_why")  # of a resolved config: no keys


def load_config(
    path: str | Path,
    overrides: list[str] = (),
    method_defaults: dict[str, Any] | None = None,
    lenient: bool = False,
) -> EasyDict:
    """Reads a config file and resolves it.

    Args:
        path: the `.py` file, with or without suffix, relative to here or to a clone's own folder.
        overrides: "key=value" strings. A key that wants text has the text as it is; else values are
            Python literals.
        method_defaults: keys that a method adds, and its defaults of others: values or Keys.
        lenient: let the file's unknown keys pass unread: of a method the caller does not know.

    Returns:
        An EasyDict with every key of configs/base.py and of the method, its defaults those of the
        file's convention, see bct/conventions.py; `name` is the file's stem, paths are absolute,
        `rec` names the shard's own file when `shard` is given, or `scenario` and `old_config`
        without `old_model`.

    Raises:
        BctError: no such file, an unknown key, or a value that its Key does not take.
    """
    file = find_config(path)
    base, added, given = _base(), method_defaults or {}, _config_of(file)
    overridden = dict(_split(text) for text in overrides)
    convention, why = _convention(file, given, overridden, known_keys(base, added))
    defaults = defaults_of(convention, file.stem)
    keys = known_keys(_with_defaults(base, defaults), added)
    given = in_our_words(convention, file, given, keys)
    ignored = NO_OP - keys.keys()
    no_op = sorted((given.keys() | overridden.keys()) & ignored)
    if no_op:
        say(f"warning: {file.name}: no effect here: {', '.join(no_op)}")

    cfg = EasyDict(plain(keys))
    for name, value in plain(given).items():
        if name not in ignored and (name in keys or not lenient):
            cfg[name] = _taken(str(file), keys, name, value, ROOT)
    for name, text in overridden.items():
        if name not in ignored:
            value = keys[name].parsed(text) if name in keys else text
            cfg[name] = _taken("the command line", keys, name, value, Path.cwd())
    for side in ("old", "new"):  # the command line has the last word on which model it is
        if f"{side}_config" in overridden and f"{side}_model" not in overridden:
            cfg[f"{side}_model"] = None
    cfg.name = file.stem
    cfg.convention, cfg.convention_why = convention, why
    if any(base[key].default != value for key, value in defaults.items()):
        say(f"{file.name}: {convention_line(cfg)}")
    cfg.feature_save = str(ROOT / cfg.feature_save)
    cfg.output = cfg.output or str(ROOT / "work_dirs" / cfg.name)
    if cfg.scenario and cfg.old_config and cfg.shard is None and not cfg.old_model:
        cfg.shard = new_shard(cfg.scenario, cfg.old_config)
    if cfg.rec and cfg.shard:
        cfg.rec = str(shard_file(cfg.rec, cfg.shard))
    return cfg


def convention_line(cfg: EasyDict) -> str:
    """Whose defaults a config has, and why."""
    return f"convention {cfg.convention}: {cfg.get('convention_why', 'nothing says another')}"


def _convention(
    file: Path, given: dict[str, Any], overridden: dict[str, str], known: dict[str, Key]
) -> tuple[str, str]:
    """(convention, why) of a run: as the command line, the file or the file's keys say it."""
    if "convention" in overridden:
        key = known["convention"]
        said = _taken(
            "the command line", known, "convention", key.parsed(overridden["convention"]), Path()
        )
        if said is not None:
            return said, "the command line says so"
    elif given.get("convention") is not None and not isinstance(given["convention"], Key):
        return _taken(
            str(file), known, "convention", given["convention"], Path()
        ), "the file says so"
    return convention_of(file, given, known)


def _with_defaults(base: dict[str, Key], defaults: dict[str, Any]) -> dict[str, Key]:
    changed = {k: dataclasses.replace(base[k], default=v) for k, v in defaults.items()}
    return base | changed


def base_config(overrides: list[str] = ()) -> EasyDict:
    """Every key that all runs have, with its default or what "key=value" strings say.

    Raises BctError like load_config.
    """
    keys = known_keys(_base(), {})
    cfg = EasyDict(plain(keys))
    for name, text in map(_split, overrides):
        value = keys[name].parsed(text) if name in keys else text
        cfg[name] = _taken("the command line", keys, name, value, Path.cwd())
    return cfg


def _base() -> dict[str, Any]:
    return _config_of((ROOT if IN_CLONE else PACKAGE) / "configs" / "base.py")


def _file_name(text: str) -> str:
    """A path as this system's calls take it: configs are UTF-8, the locale may be another."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def find_config(path: str | Path) -> Path:
    """The config file a user means: as given, under a clone's folder, with `.py` left out."""
    if Path(path).suffix in (".yml", ".yaml", ".json"):
        raise BctError(
            f"{path} is no config of ours: those are Python files, .py",
            "AdvBCT's YAML and OpenCompatible's JSON have counterparts: see "
            "docs/published_configs.md",
        )
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
    """Writes the resolved config as a config file, without secrets."""
    said = {key: value for key, value in cfg.items() if key not in (*_UNSAVED, *SECRET)}
    keys = "\n".join(f"config.{key} = {value!r}" for key, value in said.items())
    write_text(
        path,
        f"{f'{cfg.name}, resolved.'!r}\n\nfrom easydict import EasyDict as edict\n\n"
        f"config = edict()\n{keys}\n",
    )


def execute(file: Path) -> EasyDict:
    """The `config` that a config file makes. Raises BctError when it does not run or makes none."""
    return EasyDict(plain(_config_of(file)))


def _config_of(file: Path) -> dict[str, Any]:
    """As execute; configs/base.py has Keys for values."""
    try:
        namespace = runpy.run_path(str(file))
    except BctError:
        raise
    except (Exception, SystemExit) as error:  # a config is code: what it raises is the user's
        reason = " ".join(str(error).split())[:300]
        raise BctError(
            f"{file} does not run: {type(error).__name__}: {reason}", "mend the config file"
        ) from error
    config = namespace.get("config")
    if not isinstance(config, dict):
        raise BctError(f"{file} defines no `config`", "begin it with: config = EasyDict()")
    odd = [name for name in config if not isinstance(name, str)]
    if odd:
        raise BctError(f"{file}: the key {shown(odd[0])} is no name", "write config.lr = 0.1")
    return dict(config)


def _split(argument: str) -> tuple[str, str]:
    name, equals, text = argument.partition("=")
    if not equals or not name.isidentifier():
        raise BctError(f"argument {shown(argument)} is not key=value", "write overrides as lr=0.05")
    return name, text


def _taken(source: str, keys: dict[str, Key], name: str, value: Any, base: Path) -> Any:
    """The value of a key as runs have it. base: where relative paths start."""
    if name not in keys:
        near = difflib.get_close_matches(name, keys, n=1, cutoff=0.7)
        lists = "configs/base.py lists the keys, the train.py of a method its own"
        hint = f"did you mean {near[0]}?" if near else lists
        raise BctError(f"{source}: unknown config key {shown(name)}", hint)
    key = keys[name]
    try:
        value = key.taken(value)
    except ValueError:
        raise BctError(f"{source}: {name} can't be {shown(value)}", key.advice) from None
    if key.is_path and value is not None and value != "synthetic":
        return str((base / os.path.expanduser(_file_name(value))).absolute())
    return value


def command_line(default: str | Path | None = None) -> tuple[str | Path, list[str]]:
    """[config] [key=value ...] from sys.argv; exit code 2 for anything else."""
    parser = Parser("Trains a network; configs/base.py explains the keys.")
    example = "e.g. configs/f128_r18_softmax_class30.py"
    which = f"default: {default}".replace("%", "%%") if default else example
    parser.add_argument("config", nargs="?", type=some_text, help=which)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ")
    given = parser.parse_args()
    words = [word for word in (given.config, *given.overrides) if word is not None]
    configs = [word for word in words if "=" not in word]
    if len(configs) > 1:
        parser.error(f"there are several configs: {', '.join(configs)}")
    if not configs and default is None:
        parser.error(f"no config given{ADVICE}name one, {example}")
    if not configs:
        say(
            f"no config given: running the demo configuration {default} "
            "(`make demo` makes its data and old model)"
        )
    return (configs[0] if configs else default), [word for word in words if "=" in word]
