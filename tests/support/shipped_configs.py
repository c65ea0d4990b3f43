"""Trains what this repository ships for two steps: tiny data of its kind, and the old models.

An error about a missing artefact names the command that makes it; that command is run, and when it
needs a model that nobody has trained yet, this model's config, too, is trained for two steps.
"""

import json
import pickle
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict

from bct.config import base_config, execute, load_config
from bct.errors import BctError
from bct.files import ROOT
from bct.method import Method, load_method
from bct.stored.artefacts import artefact_path, place_of_model
from bct.train import train
from support.old_models import CPU, tool
from support.pictures import jpeg, picture, write_faces
from tools.train_chain import check, commands

LIGHT = ("demo_", "conv4_", "fct", "gem_w")  # networks that are trained as they are
STAND_IN = {"network": "conv4_w32", "image_size": 64}  # for the others
STAND_IN_FACE = {"network": "demo_w32"}
SMALL = {"num_epoch": 1, "frequent": 1, "num_workers": 0, "amp": "off", "val_targets": []}
SMALL |= {"num_classes": None, "num_image": None}
METHOD_SMALL = {"UniBCT": {"refresh_epochs": [0]}}  # there have to be prototypes within one epoch
# runs/benchmark.sh gives these to the configs that name no old model
UPGRADE = {"scenario": "OPclass", "old_config": "bench_old_class30"}
UPGRADE |= {"new_config": "bench_alone_class100"}
ALONE = dict.fromkeys(("shard", "scenario", "old_config", "new_config"))


def all_configs() -> list[Path]:
    """Everything that defines a config, wherever it is, but the list of all keys."""
    files = {f for folder in ("configs", "methods", "runs") for f in (ROOT / folder).rglob("*.py")}
    found = sorted(f for f in files if re.search(r"^config = \w+\(", f.read_text(), re.M))
    return [file for file in found if file != ROOT / "configs" / "base.py"]


CHAINS = [path for path in all_configs() if "versions" in execute(path)]
CONFIGS = [path for path in all_configs() if path not in CHAINS]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


@cache
def method_of(path: Path) -> type[Method]:
    parts = path.relative_to(ROOT).parts
    return load_method(parts[1]) if parts[0] == "methods" else Method


def written(overrides: dict[str, Any]) -> list[str]:
    """As on a command line."""
    return [f"{key}={value}" for key, value in overrides.items()]


def named_by(folder: str) -> Path:
    """The config whose run a model's folder is, work_dirs/<its name>."""
    return ROOT / "configs" / f"{Path(folder).name}.py"


def settings(path: Path, **overrides: Any) -> EasyDict:
    return load_config(path, written(overrides), method_of(path).defaults)


def all_settings() -> list[EasyDict]:
    """Of every config, and of every version of every chain."""
    found = [settings(path) for path in CONFIGS]
    for chain in map(execute, CHAINS):
        shared = base_config() | {"rec": chain.data} | chain.get("common", {})
        found += [EasyDict(shared | version) for version in chain.versions]
    return found


NAMES = ("name", "output", "rec", "feature_save", "shard", "scenario", "old_config", "new_config")
# whose it is, and what Shipped replaces in all of them
NAMES += ("convention", "convention_why", *SMALL, "fp16", "verbose")


def outline(value: Any) -> Any:
    """A setting without its number: that it is none, zero, a share, or so many."""
    if isinstance(value, dict):
        return {key: outline(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return len(value)
    if isinstance(value, float) and 0 < value < 1:
        return "a share"
    return value if isinstance(value, bool | str | None) else bool(value)


def repeated(paths: list[Path]) -> set[Path]:
    """Those that differ in numbers, shard or scenario alone from an earlier one of their method."""
    seen, found = set(), set()
    for path in paths:
        cfg = settings(path)
        if not cfg.network.startswith(LIGHT):
            cfg.network = stand_in(kind_of(cfg))["network"]
        chosen = {key: outline(value) for key, value in cfg.items() if key not in NAMES}
        kind = repr((method_of(path), cfg.image_size, sorted(chosen.items())))
        if kind in seen:
            found.add(path)
        seen.add(kind)
    return found


def kind_of(cfg: EasyDict) -> str:
    """Which of the three data sets stands for the config's own."""
    if cfg.rec is None and cfg.old_config:  # what the old model has seen
        return kind_of(settings(ROOT / "configs" / f"{cfg.old_config}.py"))
    if cfg.pixels == "face" and cfg.image_size == 112:
        return "face"
    return "cifar" if "cifar" in str(cfg.rec) else "images"


def stand_in(kind: str, size: int | tuple[int, int] = 112) -> dict[str, Any]:
    """Args: size: the config's image_size; what is oblong stays so."""
    if isinstance(size, tuple):
        return STAND_IN | {"image_size": (64, 32)}
    return STAND_IN_FACE if kind == "face" else STAND_IN


def write_data(folder: Path, classes: int, images: int) -> None:
    """The same pictures as a record file, as class folders of several sizes, and as CIFAR-100."""
    (folder / "face").mkdir(parents=True)
    write_faces(folder / "face" / "train.rec", [images] * classes)
    both = [(c, k) for c in range(classes) for k in range(images)]
    for c, k in both:
        file = folder / "images" / "train" / f"n{c:02}" / f"{k}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(c, k, 48 + 16 * k))
    pixels = [picture(c, k, 32).transpose(2, 0, 1).ravel() for c, k in both]
    batch = {b"data": np.array(pixels), b"fine_labels": [c for c, _ in both]}
    (folder / "cifar").mkdir()
    (folder / "cifar" / "train").write_bytes(pickle.dumps(batch, 2))
    names = {b"fine_label_names": [b"class %d" % c for c in range(classes)]}
    (folder / "cifar" / "meta").write_bytes(pickle.dumps(names, 2))


class Trained(NamedTuple):
    cfg: EasyDict
    steps: list[dict[str, Any]]  # the lines of metrics.jsonl that hold a loss
    still: list[str]  # parameters of the network that have not changed at all
    inputs: torch.Tensor  # two of the last batch
    width: int  # of the embeddings it should give, once it is deployed


def watched(method: type[Method]) -> type[Method]:
    """The method, keeping the network it trains, how that began and what it was shown."""

    class Watched(method):
        @classmethod
        def backbone(cls, cfg, old, dtype):
            cls.network = super().backbone(cfg, old, dtype)
            cls.before = {k: v.detach().clone() for k, v in cls.network.named_parameters()}
            cls.width = cls.output_width(cfg, old.dim)
            return cls.network

        def forward(self, embeddings, batch, head, rng):
            Watched.inputs = batch.images[:2]
            return super().forward(embeddings, batch, head, rng)

    Watched.__name__ = method.__name__  # the run must not be able to tell
    return Watched


class Shipped:
    """A folder with the data and with what shipped configs leave when they are trained."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, {}
        write_data(folder / "six", classes=6, images=3)
        # of two images a batch norm makes x and -x, whose gradients cancel in its bias
        write_data(folder / "three", classes=3, images=2)

    def data(self, kind: str, size: str = "six") -> Path:
        return self.folder / size / kind / "train"

    def split(self, kind: str, name: str | None) -> None:
        """Makes the parts that the name of a shard or of an old model speaks of."""
        percent = re.search(r"\d+$", name or "")
        whole = self.data(kind)
        if percent and percent[0] != "100" and not list(whole.parent.rglob(f"*_{percent[0]}_*")):
            tool("split_dataset", whole, "--ratio", percent[0])

    def overrides(self, path: Path) -> dict[str, Any]:
        """What makes this config small; the rest of it stays as shipped."""
        method, cfg = method_of(path), settings(path)
        given = SMALL | METHOD_SMALL.get(method.__name__, {})
        if method.needs(cfg) and cfg.old_config is None:
            if cfg.old_model is None:
                given |= UPGRADE
            else:  # the folder that another config leaves
                given["old_model"] = self.train(named_by(cfg.old_model)).cfg.output
            cfg = settings(path, **given)
        kind = kind_of(cfg)
        self.split(kind, cfg.shard)
        self.split(kind, cfg.old_config)
        if not cfg.network.startswith(LIGHT):
            given |= stand_in(kind, cfg.image_size)
        output = self.folder / "runs" / name_of(path)
        return given | {
            "rec": self.data(kind),
            "feature_save": self.folder / "features",
            "output": output,
        }

    def train(self, path: Path) -> Trained:
        """Two steps of a config, after whatever they need has been made."""
        if path in self.results:
            return self.results[path]
        cfg, done = settings(path, **self.overrides(path)), set()
        while path not in self.results:
            try:
                self.results[path] = self.two_steps(EasyDict(cfg), method_of(path))
            except BctError as error:
                command = re.search(r"make it with: python tools/(\w+)\.py (.*)", str(error))
                if command is None or command[0] in done:
                    raise
                done.add(command[0])
                self.make(cfg, command[1], shlex.split(command[2]))
        return self.results[path]

    def make(self, cfg: EasyDict, name: str, words: list[str]) -> None:
        """Runs a tool as an error names it; small, if it gets the config of a model."""
        if "--model" in words:
            folder, rec = (words[words.index(option) + 1] for option in ("--model", "--rec"))
            place = place_of_model(folder, rec)
            if name == "extract_features":
                words = [*words, "num_workers=0", "amp=off"]
            elif not place.path("old_embedding").is_file():
                self.make(cfg, "extract_features", ["--model", folder, "--rec", rec])
            return tool(name, *words)
        sd = words[words.index("--SD") + 1]
        if words[0].endswith(".py"):
            model = ROOT / words[0]
            self.train(model)
            words += written(self.overrides(model))
        elif not artefact_path("old_embedding", cfg.feature_save, cfg.scenario, sd).is_file():
            self.make(cfg, "extract_features", [f"configs/{cfg.old_config}.py", "--SD", sd])
        tool(name, *words)

    def train_alone(self, cfg: EasyDict) -> Trained:
        """Two steps of the config's own network on three images each, without an old model."""
        data, output = self.data(kind_of(cfg), "three"), self.folder / cfg.network
        own = {"name": cfg.network, "rec": str(data), "output": str(output)}
        return self.two_steps(EasyDict(cfg | SMALL | ALONE | own), Method)

    def train_chain(self, path: Path) -> list[Trained]:
        """Two steps of every version, by the commands of tools/train_chain.py, and the rest of
        these."""
        chain, results = check(execute(path), path), []
        shared = base_config() | {"rec": chain.data} | chain.get("common", {})
        kind = kind_of(EasyDict(shared))
        chain.data = chain.test = str(self.data(kind))
        for version in chain.versions:
            self.split(kind, version.get("shard"))
            if not version.network.startswith(LIGHT):
                version.update(stand_in(kind))
        output = self.folder / "runs" / name_of(path)
        for _, script, *words in commands(chain, output, written(SMALL), ["python"]):
            if Path(script).name in ("train.py", "train_old.py"):
                folder = Path(script).parent.name
                method = load_method(folder) if folder else Method
                small = written(METHOD_SMALL.get(folder, {}))
                cfg = load_config(words[0], [*words[1:], *small], method.defaults)
                results.append(self.two_steps(cfg, method))
            elif script == "tools/extract_features.py":
                tool("extract_features", *words, *written(SMALL))
            else:
                tool(f"../{script.removesuffix('.py')}", *words)
        return results

    def two_steps(self, cfg: EasyDict, method: type[Method]) -> Trained:
        method = watched(method)
        data = method.data(cfg)
        cfg.batch_size = len(data) // (2 * cfg.gradient_acc)
        if cfg.images_per_class:  # no class has images for two visits
            classes = max(data.num_classes // 2, 2)
            cfg.images_per_class, cfg.batch_size = 2, 2 * classes
            cfg.num_epoch = 2 // (data.num_classes // classes)
        assert train(cfg, method, CPU) == 0
        output = Path(cfg.output)
        shutil.rmtree(output / "checkpoints")
        lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        still = [
            key
            for key, value in method.network.named_parameters()
            if value.requires_grad and torch.equal(value, method.before[key])
        ]
        steps = [line for line in lines if "loss" in line]
        return Trained(cfg, steps, still, method.inputs, method.width)
