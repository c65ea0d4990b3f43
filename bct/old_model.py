"""The old model as a method sees it: its artefacts, checked against the data, and the network."""

import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from bct.amp import amp_dtype
from bct.data.image_set import ImageSet
from bct.data.label_map import load_map, new_to_old
from bct.errors import BctError
from bct.files import read_json, sha256, sha256_file
from bct.models.about import view_of_config, view_of_model
from bct.models.reference_checkpoints import reference_classifier
from bct.models.weights import load_backbone
from bct.rows import refuse_not_finite
from bct.scenarios import artefact_name
from bct.stored.artefacts import (
    KINDS,
    PER_CLASS,
    artefact_path,
    entries,
    open_artefact,
    with_folder,
)


class OldModel:
    """The artefacts of the old model that a method needs, opened and checked against the data.

    Args:
        cfg: a resolved config. A key named like the artefact (e.g. old_embedding) overrides the
            path that follows from scenario and old_config.
        dataset: the new model's training data.
        needs: kinds, keys of KINDS.

    Raises:
        BctError: an artefact that is missing, stale, of another data set, length or dimension, or
            that was made from another old model than its companions.
    """

    def __init__(self, cfg: EasyDict, dataset: ImageSet, needs: tuple[str, ...] = ()):
        self.cfg = cfg
        self._arrays: dict[str, np.ndarray] = {}
        self.manifests: dict[str, dict] = {}
        for kind in needs:
            path, how = self.locate(cfg, kind)
            array, manifest = open_artefact(path, how)
            self._check(cfg, dataset, path, manifest, how)
            self._arrays[kind], self.manifests[kind] = array, manifest
        self._classes = dataset.class_names
        models = {m["model"] for kind, m in self.manifests.items() if kind != "new_embedding"}
        if len(models) > 1:
            raise BctError(
                f"the artefacts {', '.join(needs)} come from different old models",
                "make all of them again from the same one (tools/, in the README's order)",
            )
        if "new_embedding" in self.manifests and self.manifests["new_embedding"]["model"] in models:
            raise BctError(
                "the embeddings of the old and of the new model come from one model",
                "give old_config and new_config names that differ before their shard, extract anew",
            )

    @property
    def dim(self) -> int | None:
        """Width of the old embeddings; None without any."""
        dims = (m["dim"] for kind, m in self.manifests.items() if kind != "new_embedding")
        return next((dim for dim in dims if dim is not None), None)

    @property
    def absent(self) -> int:
        """How many images have no embedding among the artefacts: rows of zeros in them."""
        return max((m.get("absent") or 0 for m in self.manifests.values()), default=0)

    @property
    def fingerprint(self) -> str:
        """Changes when any of the artefacts does."""
        keys = ("kind", "model", "data", "parity", "T", "rows", "dim")
        parts = [repr([m.get(key) for key in keys]) for m in self.manifests.values()]
        if self.absent:
            parts.append(f"absent {self.absent}")
        return sha256(*parts)

    def rows(self, kind: str, index: torch.Tensor) -> torch.Tensor:
        """These rows of an artefact, on the index's device; only they are read from disk.

        Raises BctError for one that is not finite.
        """
        chosen = index.cpu().numpy()
        rows = self._arrays[kind][chosen]
        refuse_not_finite(rows, str(self._arrays[kind].filename), lambda k: chosen[k])
        return torch.from_numpy(rows).to(index.device)

    def whole(self, kind: str) -> torch.Tensor:
        """A whole artefact in memory (masks, class means)."""
        return torch.from_numpy(np.array(self._arrays[kind]))

    def table(self, kind: str) -> dict[str, torch.Tensor]:
        """The columns of an artefact of records, in memory."""
        array = self._arrays[kind]
        return {name: torch.from_numpy(np.array(array[name])) for name in array.dtype.names}

    def new_to_old(self) -> torch.Tensor:
        """The old model's label of every new class, -1 where it has none: int64 (C_new,).

        From cfg.n2o_map if it is set, else from the classes' names, else, where there are none as
        in record files, the old classes are the first ones.

        Raises BctError when the old model's model.json is not there to tell, for a map that does
        not fit, and when no class is in both.
        """
        known = self.about()
        count, names = self.cfg.num_classes, known.get("class_names")
        if self.cfg.n2o_map:
            return torch.from_numpy(load_map(self.cfg.n2o_map, count, known["num_classes"]))
        if names and self._classes:
            return torch.from_numpy(new_to_old(self._classes, names))
        if names or self._classes:
            without = "the training set" if names else "the old model"
            raise BctError(
                f"{without} has no names for its classes, so they can't be matched",
                "set n2o_map to a file with the old label of every new one",
            )
        seen = {"OPclass": 0, "EXclass": known["num_classes"]}.get(self.cfg.scenario, count)
        labels = torch.arange(count)
        return labels.where(labels < seen, -1)

    def classifier(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The old model's own softmax classifier: weight (C_old, D) and bias (C_old,) or None.

        It is one of unit embeddings if classifies_unit().

        Raises BctError when the old model has none (trained with a margin head) or is gone, and
        when its rows are not its classes.
        """
        about = self.about()
        weights = self._weights()
        weight, bias = reference_classifier(weights, about.get("network"))
        if len(weight) != about["num_classes"]:
            raise BctError(
                f"{weights} has a classifier of {len(weight)} rows, its model.json says "
                f"{about['num_classes']} classes",
                "put the model.pt and model.json of one training together",
            )
        return weight, bias

    def classifies_unit(self) -> bool:
        """Whether the old model's classifier was trained on embeddings of length 1 (head_unit)."""
        return bool(self.about().get("head_unit"))

    def network(self, kind: str | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network that an artefact was made with, frozen: a batch's images -> (B, D).

        It can't be trained, gets no gradients and belongs to no module, so no checkpoint holds it.
        It is loaded by the first call, onto the images' device.

        Args:
            kind: one of those asked for; default: any of the old model.

        Raises BctError when the weights are gone or others, or see images in another way than
        this training does.
        """
        kind = kind or next(k for k in self.manifests if k != "new_embedding")
        weights, about = self._weights(kind), self.about(kind)
        if sha256_file(weights) != self.manifests[kind]["model"]:
            raise BctError(f"{weights} has been trained anew since", "make its artefacts again")
        ours, its = view_of_config(self.cfg), view_of_model(weights)
        if (its.size, its.pixels) != (ours.size, ours.pixels):
            raise BctError(
                f"{weights} sees {its.pixels} images of {its.size} pixels, this training "
                f"{ours.pixels} of {ours.size}",
                "train with the same image_size and pixels, or use stored embeddings",
            )

        @cache
        def on(device: torch.device) -> nn.Module:
            dtype = amp_dtype(self.cfg.amp, device, self.cfg.fp16)
            network = load_backbone(weights, about["network"], dtype, fold=True)
            return network.requires_grad_(False).to(device)

        @torch.no_grad()
        def embed(images: torch.Tensor) -> torch.Tensor:
            return on(images.device)(images).float()

        return embed

    def _weights(self, kind: str | None = None) -> Path:
        kind = kind or next(iter(self.manifests))
        return Path(self.manifests[kind]["weights"])

    def about(self, kind: str | None = None) -> dict[str, Any]:
        """model.json of the network that an artefact was made with; default: any of them.

        Raises BctError when it or the network is gone.
        """
        weights = self._weights(kind)
        for file in (weights, weights.with_suffix(".json")):
            if not file.is_file():
                raise BctError(
                    f"{file} is not there to say what the old model was trained on",
                    "put the old model's model.pt and model.json back where they were",
                )
        return read_json(weights.with_suffix(".json"))

    @staticmethod
    def locate(cfg: EasyDict, kind: str) -> tuple[Path, str]:
        """Where an artefact of a kind is, and the command that makes it."""
        missing = [k for k in ("scenario", _names_model(kind)) if cfg[k] is None]
        if missing and not cfg.get(kind):
            raise BctError(
                f"config {cfg.name} does not set {missing[0]}, so there is no old model to follow",
                'set scenario ("OPclass", ...) and old_config ("f128_r18_softmax_class30", ...)',
            )
        if missing:
            return Path(cfg[kind]), ""
        sd, T, how = _made(cfg, kind)
        if cfg.get(kind):
            return Path(cfg[kind]), how
        return artefact_path(kind, cfg.feature_save, cfg.scenario, sd, T), how

    @staticmethod
    def _check(cfg: EasyDict, dataset: ImageSet, path: Path, manifest: dict, how: str) -> None:
        entries(manifest, path, "kind", "model", "data", "data_path", "weights")
        if manifest["data"] != dataset.fingerprint:
            raise BctError(
                f"{path} was made from {manifest['data_path']}, which is not the data in {cfg.rec}",
                f"make it again from this data: {how}",
            )
        per_class = manifest["kind"] in PER_CLASS
        wanted = dataset.num_classes if per_class else len(dataset)
        if manifest["rows"] != wanted:
            raise BctError(
                f"{path} has {manifest['rows']} rows, the data set {wanted} "
                f"{'classes' if per_class else 'images'}",
                f"make it again: {how}",
            )
        weights = Path(manifest["weights"])
        if weights.is_file() and sha256_file(weights) != manifest["model"]:
            raise BctError(
                f"{path} is stale: {weights} has been trained anew since", f"make it again: {how}"
            )


def _names_model(kind: str) -> str:
    """The key that names the model an artefact is of."""
    return "new_config" if kind == "new_embedding" else "old_config"


def _made(cfg: EasyDict, kind: str, folder: str | Path = "configs") -> tuple[str, float, str]:
    """An artefact's name SD, its T, and the command that makes it."""
    name, T = cfg[_names_model(kind)], cfg.get("T", 0.9)
    sd = artefact_name(name, cfg.shard)
    config = shlex.quote(str(Path(folder) / f"{name}.py"))
    command = KINDS[kind][1].format(old_config=config, sd=sd, T=T)
    return sd, T, with_folder(command, cfg.feature_save)


def artefact_commands(
    cfg: EasyDict, kinds: tuple[str, ...], folder: str | Path = "configs"
) -> list[str]:
    """The commands that make what a method needs, in order, each once.

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
        if cfg[_names_model(kind)] is None:
            raise BctError(
                f"{kind} is of a model that the config {cfg.name} does not name",
                "set old_config, or new_config for what is of a new model trained alone",
            )
        command = _made(cfg, kind, folder)[2]
        if command not in commands:
            commands.append(command)
    return commands
