"""The old model as a method sees it: its artefacts, checked against the data, and the network."""

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
from bct.data.images import size_in_words
from bct.data.label_map import load_map, new_to_old
from bct.data.views import normalised_as
from bct.errors import BctError
from bct.files import sha256, sha256_file
from bct.models.about import (
    described_in,
    holds_model,
    model_in,
    said_beside,
    view_in_manifest,
    view_of_config,
    view_of_model,
)
from bct.models.classifiers import CLASSIFIER, classifier_file
from bct.models.reference_checkpoints import reference_classifier
from bct.models.weights import load_backbone
from bct.rows import present_rows, refuse_not_finite
from bct.stored.artefacts import (
    PER_CLASS,
    entries,
    open_artefact,
)
from bct.stored.places import place_of, side_of, unnamed

_CLASSES = ("num_classes", "class_names", "head_unit")  # what a model.json says of them


class OldModel:
    """The artefacts of the old model that a method needs, opened and checked against the data.

    Args:
        cfg: a resolved config. A key named like the artefact (e.g. old_embedding) overrides the
            path that follows from old_model, or from scenario and old_config.
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
            _require_folder(cfg, kind, path)
            array, manifest = open_artefact(path, how)
            self._check(cfg, dataset, kind, path, manifest, how)
            self._arrays[kind], self.manifests[kind] = array, manifest
        self._classes = dataset.class_names
        models = {m["model"] for kind, m in self.manifests.items() if kind != "new_embedding"}
        if len(models) > 1:
            raise BctError(
                f"the artefacts {', '.join(needs)} come from different old models",
                "make all of them again from the same one (tools/, in the README's order)",
            )
        digests = {m["features"] for m in self.manifests.values() if m.get("features")}
        if "old_embedding" in self.manifests and digests:
            digests.add(self.manifests["old_embedding"].get("digest"))
        if len(digests) > 1:
            raise BctError(
                f"the artefacts {', '.join(needs)} were made from embeddings imported at different "
                "times",
                "make those of tools/ again, and import the others with --overwrite",
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
        for side in ("old", "new"):  # of what is apart, the artefacts know nothing
            if not (folder := self.cfg.get(f"{side}_model")):
                continue
            if (apart := Path(folder) / CLASSIFIER).is_file():
                parts.append(f"{side} classifier {sha256_file(apart)}")
            if holds_model(folder):
                said = said_beside(model_in(folder))
                parts.append(repr([said.get(key) for key in _CLASSES]))
        return sha256(*parts)

    def rows(self, kind: str, index: torch.Tensor) -> torch.Tensor:
        """These rows of an artefact, on the index's device; only they are read from disk.

        Raises BctError for one that is not finite.
        """
        chosen = index.cpu().numpy()
        rows = self._arrays[kind][chosen]
        refuse_not_finite(rows, str(self._arrays[kind].filename), lambda k: chosen[k])
        return torch.from_numpy(rows).to(index.device)

    def present(self, kind: str) -> torch.Tensor:
        """Which rows of an artefact there are, bool (n,): absent ones are zeros."""
        return torch.from_numpy(present_rows(self._arrays[kind]))

    def whole(self, kind: str) -> torch.Tensor:
        """A whole artefact in memory (masks, class means)."""
        return torch.from_numpy(np.array(self._arrays[kind]))

    def table(self, kind: str, *needed: str) -> dict[str, torch.Tensor]:
        """The columns of an artefact of records, in memory. BctError if it is of a version that had
        not yet all those needed."""
        array = self._arrays[kind]
        if missing := [name for name in needed if name not in array.dtype.names]:
            again = "tools/import_features.py ... --overwrite"
            if not self.manifests[kind].get("imported"):
                again = self.locate(self.cfg, kind)[1]
            raise BctError(
                f"{array.filename} has no column {missing[0]!r}: it was made before there was one",
                f"make it again: {again}",
            )
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
            return torch.from_numpy(load_map(self.cfg.n2o_map, count, self.num_classes()))
        if names and self._classes:
            return torch.from_numpy(new_to_old(self._classes, names))
        if names or self._classes:
            without = "the training set" if names else "the old model"
            raise BctError(
                f"{without} has no names for its classes, so they can't be matched",
                "set n2o_map to a file with the old label of every new one",
            )
        if self.cfg.scenario is None:
            raise BctError(
                "neither the training set nor the old model has names for its classes, so they "
                "can't be matched",
                "set n2o_map to a file with the old label of every new one, or scenario, e.g. "
                "EXclass: the old classes are the first ones",
            )
        seen = 0 if self.cfg.scenario == "OPclass" else count
        if self.cfg.scenario == "EXclass":
            seen = self.num_classes()
        labels = torch.arange(count)
        return labels.where(labels < seen, -1)

    def classifier(self, kind: str | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The old model's own softmax classifier: weight (C_old, D) and bias (C_old,) or None.

        It is one of unit embeddings if classifies_unit(kind).

        Args:
            kind: "new_embedding" for that of the new model trained alone.

        Raises BctError when the old model has none (trained with a margin head) or is gone, and
        when its rows are not its classes.
        """
        network, weights = self.about(kind).get("network"), self._weights(kind)
        file = classifier_file(weights)
        if file.suffix == ".onnx":
            raise BctError(
                f"{weights} comes without its classifier",
                "import it with --classifier, or use class means of its embeddings",
            )
        weight, bias = reference_classifier(file, network)
        if len(weight) != self.num_classes(kind):
            raise BctError(
                f"{weights} has a classifier of {len(weight)} rows, its model.json says "
                f"{self.num_classes(kind)} classes",
                "put the model.pt and model.json of one training together",
            )
        return weight, bias

    def num_classes(self, kind: str | None = None) -> int:
        """How many classes the old model knows. BctError if its model.json does not say it."""
        known = self.about(kind).get("num_classes")
        if known is None:
            raise BctError(
                f"{self._weights(kind).with_suffix('.json')} does not say how many classes the old "
                "model knows",
                "import the model with its classes: python tools/import_model.py ... --classes",
            )
        return known

    def classifies_unit(self, kind: str | None = None) -> bool:
        """Whether the old model's classifier was trained on embeddings of length 1 (head_unit)."""
        return bool(self.about(kind).get("head_unit"))

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
        if its.size != ours.size:
            raise BctError(
                f"{weights} sees images of {size_in_words(its.size)} pixels, this training of "
                f"{size_in_words(ours.size)}",
                "train with the same image_size, or use stored embeddings",
            )

        @cache
        def on(device: torch.device) -> nn.Module:
            dtype = amp_dtype(self.cfg.amp, device, self.cfg.fp16)
            network = load_backbone(
                weights, about.get("network"), dtype, True, its.size, its.pixels
            )
            return network.requires_grad_(False).to(device)

        @torch.no_grad()
        def embed(images: torch.Tensor) -> torch.Tensor:
            seen = normalised_as(images, ours.pixels, its.pixels)
            return on(images.device)(seen).float()

        return embed

    def _weights(self, kind: str | None = None) -> Path:
        """The network that an artefact was made with: the folder's, else where it was then.

        Raises BctError if only its embeddings are left.
        """
        kind = kind or next(iter(self.manifests))
        folder, weights = self.cfg.get(f"{side_of(kind)}_model"), self.manifests[kind]["weights"]
        if folder and holds_model(folder):
            return model_in(folder)
        if weights is None:
            raise BctError(
                f"{self._arrays[kind].filename} was imported without its model, which this needs",
                "use a method that needs stored embeddings only, such as MixBCT or L2",
            )
        return Path(weights)

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
        return described_in(weights)

    @staticmethod
    def locate(cfg: EasyDict, kind: str) -> tuple[Path, str]:
        """Where an artefact of a kind is, and the command that makes it."""
        missing = unnamed(cfg, kind)
        if missing and not cfg.get(kind) and side_of(kind) == "new":
            raise BctError(
                f"config {cfg.name} names no new model trained alone: {missing} is not set",
                "set new_model to its folder, or new_config, with scenario and old_config",
            )
        if missing and not cfg.get(kind):
            raise BctError(
                f"config {cfg.name} does not set {missing}, so there is no old model to follow",
                'set scenario ("OPclass", ...) and old_config ("f128_r18_softmax_class30", ...), '
                "or old_model to the old model's folder",
            )
        if missing:
            return Path(cfg[kind]), ""
        place, T = place_of(cfg, kind), cfg.get("T", 0.9)
        path = Path(cfg[kind]) if cfg.get(kind) else place.path(kind, T)
        return path, place.command(kind, T)

    @staticmethod
    def _check(
        cfg: EasyDict, dataset: ImageSet, kind: str, path: Path, manifest: dict, how: str
    ) -> None:
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
        folder = cfg.get(f"{side_of(kind)}_model") if manifest["weights"] else None
        weights = manifest["weights"] and Path(manifest["weights"])
        if folder and holds_model(folder):  # which may have moved
            weights = model_in(folder)
        if weights and weights.is_file() and sha256_file(weights) != manifest["model"]:
            raise BctError(
                f"{path} is stale: {weights} has been trained anew since", f"make it again: {how}"
            )
        brought = manifest.get("imported") or manifest.get("features")  # they say no view
        if brought or not folder or not holds_model(folder) or "view" not in said_beside(weights):
            return
        its = view_in_manifest(view_of_model(weights))
        if manifest.get("view", its) != its:
            what = f"{path} is stale: {weights} sees images in another way now, says its .json"
            raise BctError(what, f"make it again: {how}")


def _require_folder(cfg: EasyDict, kind: str, path: Path) -> None:
    """Raises BctError where an artefact is not there because old_model names no model's folder."""
    folder = cfg.get(f"{side_of(kind)}_model")
    if folder and not cfg.get(kind) and not path.parent.is_dir():
        model_in(folder)
