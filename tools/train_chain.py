"""Trains a chain of models v1 -> v2 -> ... -> vk from one config, each against the one before.

    python tools/train_chain.py configs/omniglot_chain.py
    python tools/train_chain.py configs/x.py --launch "torchrun --nproc_per_node=8"

The config holds the data set, keys for all versions, and what each version differs in:

    config.data = "work_dirs/omniglot/train.txt"       # what tools/split_dataset.py was run on
    config.test = "work_dirs/omniglot/test.txt"        # for the matrix at the end, leave-one-out
    config.common = {"num_epoch": 20}
    config.versions = [
        {"network": "conv4_w32", "shard": "class50"},                      # trained alone
        {"network": "conv4_w64", "shard": "class100", "method": "BT2", "alone": True},
    ]

method is a directory of methods/; what it needs of its predecessor is made before it is trained.
alone=True also trains that version without its predecessor, for methods that learn from both. Every
version becomes a config, every step a command that can be run again; finished ones are kept, and a
killed one continues. What can't work is refused before the first step.

At the end eval/retrieval.py measures every version's queries against every version's gallery.
"""

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from easydict import EasyDict

from bct.command import Parser, file_path, run_cli, run_step, some_text, words
from bct.config import base_config, execute, find_config, load_config
from bct.errors import BctError
from bct.files import ROOT, write_text
from bct.keys import shown
from bct.method import Method, load_method
from bct.scenarios import scenario_of
from bct.stored.places import artefact_commands

KEYS = {"data", "test", "common", "versions"}
OF_A_VERSION = {"method", "alone"}  # the others are config keys


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("config", type=some_text, help="a chain's config")
    parser.add_argument("overrides", nargs="*", help="key=value for every training")
    parser.add_argument("--data", type=some_text, help="instead of the config's")
    parser.add_argument("--test", type=some_text, help="instead of the config's")
    parser.add_argument("--output", type=file_path, help="default: work_dirs/<config's name>")
    parser.add_argument(
        "--launch", type=words, default=[sys.executable], help="how a training is started"
    )
    parser.add_argument("--dry", action="store_true", help="print the commands, run nothing")
    args = parser.parse_intermixed_args()
    file = find_config(args.config)
    chain = check(execute(file), file)
    for key in ("data", "test"):
        if getattr(args, key):
            chain[key] = str(Path(getattr(args, key)).absolute())
    output = (args.output or ROOT / "work_dirs" / file.stem).absolute()
    if args.dry:  # the configs, too, are only written to be read
        with tempfile.TemporaryDirectory() as scratch:
            steps = commands(chain, output, args.overrides, args.launch, Path(scratch))
        return print("\n".join(f"\n$ {shlex.join(command)}" for command in steps))
    for command in commands(chain, output, args.overrides, args.launch):
        print(f"\n$ {shlex.join(command)}", flush=True)
        run_step(command)


def check(chain: EasyDict, file: Path) -> EasyDict:
    """The chain of a config. Raises BctError for what is no chain."""
    unknown = sorted(chain.keys() - KEYS)
    missing = sorted({"data", "test", "versions"} - chain.keys())
    if unknown or missing:
        what = f"unknown key {unknown[0]}" if unknown else f"no key {missing[0]}"
        raise BctError(f"{file}: {what}", "python tools/train_chain.py --help shows the keys")
    if not isinstance(chain.versions, list | tuple):
        raise BctError(f"{file}: versions is no list", "give a dict of keys for each version")
    for where in (chain.get("common", {}), *chain.versions):
        if not isinstance(where, dict):
            raise BctError(f"{file}: {shown(where)} is no dict of keys", "write dict(lr=0.1, ...)")
    if len(chain.versions) < 2:
        raise BctError(f"{file}: a chain has at least two versions", "add one to config.versions")
    for number, version in enumerate(chain.versions, 1):
        method = version.get("method")
        if number > 1 and not method:
            raise BctError(f"{file}: version {number} names no method", "add e.g. method='BT2'")
        if number == 1 and (method or version.get("alone")):
            raise BctError(f"{file}: version 1 has no predecessor", "take its method and alone out")
    return chain


def commands(
    chain: EasyDict,
    output: Path,
    overrides: list[str],
    launch: list[str],
    configs: Path | None = None,
) -> list[list[str]]:
    """All commands in order. Writes the versions' configs, which they name in <output>/configs.

    Args:
        launch: how a training script is started, e.g. ["torchrun", "--nproc_per_node=8"].
        configs: where the configs are written to; default: where the commands look for them.

    Raises BctError for what the chain could only stumble over after hours.
    """
    steps, models, widths, previous = [], [], [], None
    named, folder = output / "configs", configs or output / "configs"
    for number, version in enumerate(chain.versions, 1):
        keys = keys_of(chain, number, output / "feature_save")
        name, script, method = f"v{number}_{keys['shard']}", "train_old.py", Method
        if version.get("alone"):
            alone = f"alone{number}_{keys['shard']}"
            own = {key: value for key, value in keys.items() if key in base_config()}
            own |= {"output": f"{output}/{alone}", "seed": keys["seed"] + 1000}
            path = write_config(folder, alone, own)
            load_config(path, overrides)
            words = [str(named / path.name), *overrides, "resume=True"]
            steps.append([*launch, "train_old.py", *words])
            keys["new_config"] = alone
        if previous:
            keys |= {"old_config": previous, "scenario": scenario_of(f"x_{keys['shard']}")}
            method, script = load_method(version.method), f"methods/{version.method}/train.py"
        path = write_config(folder, name, keys | {"output": f"{output}/{name}"})
        cfg = load_config(path, overrides, method.defaults)
        if previous:
            serves(method, cfg, number, widths[-1])
            for command in artefact_commands(cfg, method.needs(cfg), named):
                words = shlex.split(command)[1:]
                if Path(words[0]).stem == "extract_features":
                    words += overrides  # they say how the network sees an image
                steps.append([sys.executable, *words])
        steps.append([*launch, script, str(named / path.name), *overrides, "resume=True"])
        widths.append(method.output_width(cfg, widths[-1] if widths else None))
        models.append(str(output / name / "model.pt"))
        previous = name
    test = ["--data", str(chain.test), "--leave-one-out", "--dimensions", dimensions_of(widths)]
    test += ["-o", str(output / "retrieval")]
    return [*steps, [sys.executable, "eval/retrieval.py", "--matrix", *models, *test]]


def keys_of(chain: EasyDict, number: int, feature_save: Path) -> dict[str, Any]:
    """A version's config keys, but for what says whom it follows."""
    version = chain.versions[number - 1]
    own = {key: value for key, value in version.items() if key not in OF_A_VERSION}
    shared = {"rec": chain.data, "feature_save": str(feature_save), "shard": "class100"}
    keys = {**shared, **chain.get("common", {}), **own}
    # every network has its own seed, or two of one kind would start from the same weights
    seed = keys.get("seed", 666)
    if not isinstance(seed, int):
        raise BctError(f"version {number}: seed can't be {shown(seed)}", "give a whole number")
    return keys | {"seed": seed + number}


def serves(method: type[Method], cfg: EasyDict, number: int, width: int) -> None:
    """Raises BctError for a method that can't be a chain's version after one of this width."""
    name = method.__name__
    if method.maps_gallery:
        raise BctError(
            f"version {number}: {name} maps the stored gallery and leaves no network",
            "a chain needs a network in every version; runs/images.sh shows such a method",
        )
    if "new_embedding" in method.needs(cfg) and cfg.new_config is None:
        raise BctError(
            f"version {number}: {name} learns from the same network trained alone, too",
            "set alone=True for this version",
        )
    method.check_dimensions(cfg, width)


def dimensions_of(widths: list[int]) -> str:
    """How every version's embeddings can meet every other's at the end."""
    for policy, order in (("leading", sorted(widths)), ("zero_pad", sorted(widths)[::-1])):
        if widths == order:
            return policy
    raise BctError(
        f"the versions are {', '.join(map(str, widths))} wide, so no one rule compares all of them",
        "let the width only grow or only shrink from version to version",
    )


def write_config(folder: Path, name: str, keys: dict[str, Any]) -> Path:
    """Writes one version's config file, <folder>/<name>.py."""
    path = folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"config.{key} = {value!r}" for key, value in keys.items()]
    head = f'"""Version {name} of a chain."""\n\nfrom easydict import EasyDict as edict\n\n'
    write_text(path, head + "config = edict()\n" + "\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    run_cli(main)
