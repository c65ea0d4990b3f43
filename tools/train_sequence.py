"""Trains a chain of models v1 -> v2 -> ... -> vk from one config, each against the one before.

    python tools/train_sequence.py configs/omniglot_sequence.py
    python tools/train_sequence.py configs/x.py --launch "torchrun --nproc_per_node=8"

The config holds the data set, keys for all versions, and what each version differs in:

    config.data = "work_dirs/omniglot/train.txt"       # what tools/split_dataset.py was run on
    config.test = "work_dirs/omniglot/test.txt"        # for the matrix at the end, leave-one-out
    config.common = {"num_epoch": 20}
    config.versions = [
        {"network": "conv4_w32", "shard": "class50"},                      # trained alone
        {"network": "conv4_w64", "shard": "class100", "method": "BT2", "alone": True},
    ]

method is a directory of methods/. alone=True also trains that version without its predecessor: BT2
learns from both, and it is what the chain is compared with. Every version becomes a config, every
step a command that can be run again; finished ones are kept, and a killed one continues.

At the end eval/retrieval.py measures every version's queries against every version's gallery.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from easydict import EasyDict

from bct.command import run_cli
from bct.config import execute, find_config
from bct.errors import BctError
from bct.files import ROOT, write_text
from bct.scenarios import scenario_of
from bct.stored.artefacts import KINDS

KEYS = {"data", "test", "common", "versions"}
OF_A_VERSION = {"method", "alone"}  # the others are config keys
TOOLS = ("old_prototype", "credible_old_feature")  # what a method may need, beside embeddings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a sequence's config")
    parser.add_argument("overrides", nargs="*", help="key=value for every training")
    parser.add_argument("--data", help="instead of the config's")
    parser.add_argument("--test", help="instead of the config's")
    parser.add_argument("--output", type=Path, help="default: work_dirs/<config's name>")
    parser.add_argument("--launch", default=sys.executable, help="how a training is started")
    parser.add_argument("--dry", action="store_true", help="print the commands, run nothing")
    args = parser.parse_intermixed_args()
    file = find_config(args.config)
    sequence = check(execute(file), file)
    for key in ("data", "test"):
        if getattr(args, key):
            sequence[key] = str(Path(getattr(args, key)).absolute())
    output = (args.output or ROOT / "work_dirs" / file.stem).absolute()
    for command in commands(sequence, file.stem, output, args.overrides, shlex.split(args.launch)):
        print(f"\n$ {shlex.join(command)}", flush=True)
        if args.dry:
            continue
        code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603 - our own
        if code:
            raise BctError(
                f"the step above ended with exit code {code}",
                "mend what it says, then run this again: finished steps are kept",
            )


def check(sequence: EasyDict, file: Path) -> EasyDict:
    """Raises BctError for what the chain could only stumble over after hours."""
    unknown = sorted(sequence.keys() - KEYS)
    missing = sorted({"data", "test", "versions"} - sequence.keys())
    if unknown or missing:
        what = f"unknown key {unknown[0]}" if unknown else f"no key {missing[0]}"
        raise BctError(f"{file}: {what}", "python tools/train_sequence.py --help shows the keys")
    if len(sequence.versions) < 2:
        raise BctError(f"{file}: a chain has at least two versions", "add one to config.versions")
    for number, version in enumerate(sequence.versions, 1):
        method = version.get("method")
        if number > 1 and not method:
            raise BctError(f"{file}: version {number} names no method", "add e.g. method='BT2'")
        if method and not (ROOT / "methods" / method / "train.py").is_file():
            raise BctError(f"{file}: there is no method {method}", "methods/ has the names")
        if number == 1 and (method or version.get("alone")):
            raise BctError(f"{file}: version 1 has no predecessor", "take its method and alone out")
    return sequence


def commands(
    sequence: EasyDict, name: str, output: Path, overrides: list[str], launch: list[str]
) -> list[list[str]]:
    """All commands in order. Writes the versions' configs, which they name.

    launch: how a training script is started, e.g. ["torchrun", "--nproc_per_node=8"].
    """
    saved = output / "feature_save"
    steps, models, previous = [], [], None
    for number, version in enumerate(sequence.versions, 1):
        shard = version.get("shard", "class100")
        common = {"rec": sequence.data, "feature_save": str(saved), **sequence.get("common", {})}
        keys = {k: v for k, v in version.items() if k not in OF_A_VERSION}
        keys = {**common, **keys, "shard": shard}
        # every network has its own seed, or two of one kind would start from the same weights
        keys["seed"] = keys.get("seed", 666) + number
        config_name = f"v{number}_{shard}"
        script = ["train_old.py"]
        if version.get("alone"):
            alone = f"alone{number}_{shard}"
            own = {k: v for k, v in keys.items() if k in base_keys()}
            path = write_config(output, alone, {**own, "seed": keys["seed"] + 1000})
            steps.append([*launch, "train_old.py", str(path), *overrides, "resume=True"])
            steps.append(extraction(path, alone, saved))
            keys["new_config"] = alone
        if previous:
            keys["old_config"] = previous
            keys["scenario"] = scenario_of(f"x_{shard}")
            script = [f"methods/{version.method}/train.py"]
            sd = f"{previous.rsplit('_', 1)[0]}_{shard}"
            old = output / "configs" / f"{previous}.py"
            steps.append(extraction(old, sd, saved))
            for kind in TOOLS:
                tool = shlex.split(KINDS[kind][1].format(sd=sd, T=keys.get("T", 0.9)))
                steps.append([sys.executable, *tool[1:], "--feature-save", str(saved)])
        path = write_config(output, config_name, keys)
        steps.append([*launch, *script, str(path), *overrides, "resume=True"])
        models.append(str(output / config_name / "model.pt"))
        previous = config_name
    test = ["--data", str(sequence.test), "--leave-one-out", "--dimensions", "leading"]
    test += ["-o", str(output / "retrieval")]
    return [*steps, [sys.executable, "eval/retrieval.py", "--matrix", *models, *test]]


def extraction(config: Path, sd: str, saved: Path) -> list[str]:
    """The command that stores a version's embeddings of the next one's training set."""
    tool = [sys.executable, "tools/extract_features.py", str(config), "--SD", sd]
    return [*tool, f"feature_save={saved}"]


def base_keys() -> set[str]:
    """The keys that every training knows, methods' own not among them."""
    return set(execute(ROOT / "configs" / "base.py"))


def write_config(output: Path, name: str, keys: dict[str, Any]) -> Path:
    """Writes one version's config file, whose model goes to <output>/<name>."""
    path = output / "configs" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"config.{key} = {value!r}" for key, value in {**keys, "output": f"{output}/{name}"}.items()
    ]
    head = f'"""Version {name} of a sequence."""\n\nfrom easydict import EasyDict as edict\n\n'
    write_text(path, head + "config = edict()\n" + "\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    run_cli(main)
