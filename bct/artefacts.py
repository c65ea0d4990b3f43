"""What the old model leaves for the new one: arrays on disk, each with a small JSON manifest.

    feature_save/<scenario>/<SD>_feature.npy    float32 (n, D), raw embeddings, row i = data index i
                            <SD>_label.npy      int64 (n,)
                            <SD>_avg_feature.npy                float32 (C, D), unit class means
                            <SD>_credible_ratio_90_feature.npy  bool (n,)
                            <SD>_credible_entropy_50_feature.npy    bool (n,)
                            <SD>_class_statistics.npy           one record per class, (C,)

Names and contents are the MixBCT reference's; see bct/scenarios.py for scenario and SD. The
manifest has the same name with .json: what the array was computed from, so that nothing stale is
ever used, and a digest of the array it speaks of. Two files can't be renamed at once: whatever a
kill or several writers leave, an array is used only beside a manifest with its own digest.
"""

import datetime
import hashlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from easydict import EasyDict
from torch import nn

from bct import distributed, views
from bct.amp import amp_dtype
from bct.datasets import Faces
from bct.errors import BctError
from bct.files import ROOT, atomic, read_json, sha256, sha256_file, write_json
from bct.label_map import load_map, new_to_old
from bct.reference_checkpoints import reference_classifier
from bct.scenarios import artefact_name, scenario_of
from bct.weights import load_backbone

# kind: (end of the file name, command that makes it)
KINDS = {
    "old_embedding": ("feature", "python tools/extract_features.py {old_config} --SD {sd}"),
    "old_embedding_label": ("label", "python tools/extract_features.py {old_config} --SD {sd}"),
    "old_prototype": ("avg_feature", "python tools/average_features.py --SD {sd}"),
    "credible_old_feature": (
        "credible_ratio_{percent}_feature",
        "python tools/denoise.py --T {T} --SD {sd}",
    ),
    "credible_by_entropy": (
        "credible_entropy_{percent}_feature",
        "python tools/denoise.py --by entropy --T {T} --SD {sd}",
    ),
    "class_statistics": ("class_statistics", "python tools/class_statistics.py --SD {sd}"),
    # of a new model trained alone (config new_config), for methods that learn from both
    "new_embedding": ("feature", "python tools/extract_features.py {old_config} --SD {sd}"),
}
PER_CLASS = ("old_prototype", "class_statistics")  # the others have a row per image
_BLOCK, _BLOCKS = 1 << 14, 256  # bytes, number: what a digest looks at


def artefact_path(
    kind: str, feature_save: str | Path, scenario: str, sd: str, T: float = 0.9
) -> Path:
    """Where an artefact lives. T is the kept share of the credible mask."""
    suffix = KINDS[kind][0].format(percent=round(100 * T))
    return Path(feature_save) / scenario / f"{sd}_{suffix}.npy"


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def write_artefact(
    path: Path, shape: tuple[int, ...], dtype: str, **manifest: Any
) -> Iterator[np.ndarray]:
    """Yields a memory-mapped array to fill. File and manifest appear when the block ends well.

    Args:
        manifest: what the array is and was made from; rows, dim, dtype, digest and date are added.
    """
    with atomic(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
        yield array
        array.flush()
        digest = _digest(array)
        manifest_path(path).unlink(missing_ok=True)  # one from before digests fits any array
    write_json(
        manifest_path(path),
        {
            **manifest,
            "rows": shape[0],
            "dim": shape[1] if len(shape) > 1 else manifest.get("dim"),
            "dtype": str(np.dtype(dtype)),
            "digest": digest,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    )


@contextmanager
def shared_artefact(
    path: Path, shape: tuple[int, ...], dtype: str, **manifest: Any
) -> Iterator[np.ndarray]:
    """write_artefact for all ranks: rank 0 creates the file, the others fill the same one."""
    name: list[str | None] = [None]
    with ExitStack() as stack:
        if distributed.is_main():
            array = stack.enter_context(write_artefact(path, shape, dtype, **manifest))
            name[0] = str(array.filename)
        if distributed.world_size() > 1:
            dist.broadcast_object_list(name, src=0)
        if not distributed.is_main():
            array = np.load(name[0], mmap_mode="r+")
        yield array
        array.flush()
        distributed.barrier()  # rank 0 renames the file once all have written


def _digest(array: np.ndarray) -> str:
    """sha256 of an array's size and 256 blocks spread evenly: of all of it below 4 MiB.

    It tells arrays of different runs apart in milliseconds, however large they are; it is no proof
    against damage in between.
    """
    data = array.ravel("K").view(np.uint8)  # "K": never a copy
    digest = hashlib.sha256(str(data.size).encode())
    for start in np.unique(np.linspace(0, max(data.size - _BLOCK, 0), _BLOCKS).astype(np.int64)):
        digest.update(data[start : start + _BLOCK])
    return digest.hexdigest()


def is_valid(path: Path, **expected: Any) -> bool:
    """Whether there is an artefact that can be used and whose manifest has these entries."""
    return open_valid(path, **expected) is not None


def open_valid(path: Path, **expected: Any) -> np.ndarray | None:
    """The array of an artefact that is_valid, else None.

    One opening both checks and returns: between two, another run could replace the file.
    """
    try:
        array, manifest = open_artefact(path)
    except BctError:
        return None
    return array if all(manifest.get(key) == value for key, value in expected.items()) else None


def open_artefact(path: Path, how: str = "") -> tuple[np.ndarray, dict[str, Any]]:
    """Memory-maps an artefact and reads its manifest.

    Args:
        how: the command that makes it, for the error message.

    Raises:
        BctError: missing file or manifest, array and manifest disagree, damaged files.
    """
    make = f"make it with: {how}" if how else "make it again with the tool that wrote it"
    if not path.is_file():
        raise BctError(f"artefact {path} does not exist", make)
    if not manifest_path(path).is_file():
        raise BctError(f"{path} has no manifest, so it can't be checked against the data", make)
    manifest = read_json(manifest_path(path))
    entries(manifest, path, "rows", "dim", "dtype")
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except (ValueError, EOFError, OverflowError) as error:
        raise BctError(f"{path} is damaged ({error})", make) from None
    flat = manifest["dim"] is None or array.dtype.names  # of records, dim is that of their vectors
    shape = (manifest["rows"],) if flat else (manifest["rows"], manifest["dim"])
    if array.shape != shape or str(array.dtype) != manifest["dtype"]:
        raise BctError(
            f"{path} holds {array.dtype} {array.shape}, its manifest says "
            f"{manifest['dtype']} {shape}",
            make,
        )
    # manifests written before there were digests have none
    if manifest.get("digest") not in (None, _digest(array)):
        raise BctError(
            f"{path} is not the array its manifest was written for: a run was killed between the "
            "two, or several wrote it at once",
            make,
        )
    return array, manifest


def entries(manifest: Any, path: str | Path, *keys: str) -> dict[str, Any]:
    """These entries of an artefact's manifest. Raises BctError if it has not all of them."""
    missing = [key for key in keys if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise BctError(
            f"{Path(path).with_suffix('.json')} has no entry {missing[0]!r}, so it is no manifest",
            f"make it and {Path(path).name} again with the tool that wrote them",
        )
    return {key: manifest[key] for key in keys}


def _with_folder(command: str, feature_save: str | Path) -> str:
    """A tool's command for artefacts that are not in the default folder."""
    if Path(feature_save) == ROOT / "feature_save":
        return command
    option = "feature_save=" if "extract_features" in command else "--feature-save "
    return f"{command} {option}{shlex.quote(str(feature_save))}"


def open_features(
    feature_save: str | Path, sd: str
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Embeddings (n, D), labels (n,) and what a further artefact inherits from their manifest.

    Raises BctError when one is missing or damaged, or when they do not belong together.
    """
    how = f"python tools/extract_features.py <the old model's config> --SD {sd}"
    how = _with_folder(how, feature_save)
    scenario = scenario_of(sd)
    features, manifest = open_artefact(
        artefact_path("old_embedding", feature_save, scenario, sd), how
    )
    labels, of_labels = open_artefact(
        artefact_path("old_embedding_label", feature_save, scenario, sd), how
    )
    keys = ("model", "data", "parity", "amp", "weights", "data_path")
    made_from = entries(manifest, features.filename, *keys)
    if made_from != entries(of_labels, labels.filename, *keys):
        raise BctError(
            f"embeddings and labels of {sd} come from different runs", f"make both: {how}"
        )
    return features, np.array(labels), made_from


class OldModel:
    """The artefacts of the old model that a method needs, opened and checked against the data.

    Args:
        cfg: a resolved config. A key named like the artefact (e.g. old_embedding) overrides the
            path that follows from scenario and old_config.
        faces: the new model's training data.
        needs: kinds, keys of KINDS.

    Raises:
        BctError: an artefact that is missing, stale, of another data set, length or dimension, or
            that was made from another old model than its companions.
    """

    def __init__(self, cfg: EasyDict, faces: Faces, needs: tuple[str, ...] = ()):
        self.cfg = cfg
        self._arrays: dict[str, np.ndarray] = {}
        self.manifests: dict[str, dict] = {}
        for kind in needs:
            path, how = self.locate(cfg, kind)
            array, manifest = open_artefact(path, how)
            self._check(cfg, faces, path, manifest, how)
            self._arrays[kind], self.manifests[kind] = array, manifest
        self._classes = getattr(faces, "class_names", None)
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
    def fingerprint(self) -> str:
        """Changes when any of the artefacts does."""
        keys = ("kind", "model", "data", "parity", "T", "rows", "dim")
        parts = [repr([m.get(key) for key in keys]) for m in self.manifests.values()]
        return sha256(*parts)

    def rows(self, kind: str, index: torch.Tensor) -> torch.Tensor:
        """These rows of an artefact, on the index's device; only they are read from disk."""
        return torch.from_numpy(self._arrays[kind][index.cpu().numpy()]).to(index.device)

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
        ours, its = views.of_config(self.cfg), views.of_model(weights)
        if (its.size, its.pixels) != (ours.size, ours.pixels):
            raise BctError(
                f"{weights} sees {its.pixels} images of {its.size} pixels, this training "
                f"{ours.pixels} of {ours.size}",
                "train with the same image_size and pixels, or use stored embeddings",
            )

        @cache
        def on(device: torch.device) -> nn.Module:
            dtype = amp_dtype(self.cfg, device)
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
        key = "new_config" if kind == "new_embedding" else "old_config"
        missing = [k for k in ("scenario", key) if cfg[k] is None]
        if missing and not cfg.get(kind):
            raise BctError(
                f"config {cfg.name} does not set {missing[0]}, so there is no old model to follow",
                'set scenario ("OPclass", ...) and old_config ("f128_r18_softmax_class30", ...)',
            )
        if missing:
            return Path(cfg[kind]), ""
        T = cfg.get("T", 0.9)
        sd = artefact_name(cfg[key], cfg.shard)
        how = KINDS[kind][1].format(old_config=f"configs/{cfg[key]}.py", sd=sd, T=T)
        how = _with_folder(how, cfg.feature_save)
        if cfg.get(kind):
            return Path(cfg[kind]), how
        return artefact_path(kind, cfg.feature_save, cfg.scenario, sd, T), how

    @staticmethod
    def _check(cfg: EasyDict, faces: Faces, path: Path, manifest: dict, how: str) -> None:
        entries(manifest, path, "kind", "model", "data", "data_path", "weights")
        if manifest["data"] != faces.fingerprint:
            raise BctError(
                f"{path} was made from {manifest['data_path']}, which is not the data in {cfg.rec}",
                f"make it again from this data: {how}",
            )
        per_class = manifest["kind"] in PER_CLASS
        wanted = faces.num_classes if per_class else len(faces)
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
