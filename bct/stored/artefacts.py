"""What the old model leaves for the new one: arrays on disk, each with a small JSON manifest.

    feature_save/<scenario>/<SD>_feature.npy    float32 (n, D), raw embeddings, row i = data index i
                            <SD>_label.npy      int64 (n,)
                            <SD>_avg_feature.npy                float32 (C, D), unit class means
                            <SD>_credible_ratio_90_feature.npy  bool (n,)
                            <SD>_credible_entropy_50_feature.npy    bool (n,)
                            <SD>_class_statistics.npy           one record per class, (C,)

Names and contents are the MixBCT reference's; see bct/scenarios.py for scenario and SD. A model's
own folder holds them in features/ in place of <scenario>, under the name of the training set. The
manifest has the same name with .json: what the array was computed from, so that nothing stale is
ever used, and a digest of the array it speaks of. Two files can't be renamed at once: whatever a
kill or several writers leave, an array is used only beside a manifest with its own digest.
"""

import argparse
import datetime
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from bct import distributed
from bct.command import Parser, named_by_folder
from bct.errors import BctError
from bct.files import ROOT, atomic, read_json, write_json
from bct.rows import zeros_remark
from bct.scenarios import scenario_of, set_name
from bct.stored.elsewhere import elsewhere

_EXTRACT = "python tools/extract_features.py"
# kind: (end of the file name, how the command that makes it begins)
KINDS = {
    "old_embedding": ("feature", _EXTRACT),
    "old_embedding_label": ("label", _EXTRACT),
    "old_prototype": ("avg_feature", "python tools/average_features.py"),
    "credible_old_feature": (
        "credible_ratio_{percent}_feature",
        "python tools/denoise.py --T {T}",
    ),
    "credible_by_entropy": (
        "credible_entropy_{percent}_feature",
        "python tools/denoise.py --by entropy --T {T}",
    ),
    "class_statistics": ("class_statistics", "python tools/class_statistics.py"),
    # of a new model trained alone, for methods that learn from both
    "new_embedding": ("feature", _EXTRACT),
}
PER_CLASS = ("old_prototype", "class_statistics")  # the others have a row per image
_BLOCK, _BLOCKS = 1 << 14, 256  # bytes, number: what a digest looks at


def artefact_path(
    kind: str, feature_save: str | Path, scenario: str, sd: str, T: float = 0.9
) -> Path:
    """Where an artefact lives. T is the kept share of the credible mask."""
    suffix = KINDS[kind][0].format(percent=round(100 * T))
    return Path(feature_save) / scenario / f"{sd}_{suffix}.npy"


class Place(NamedTuple):
    """Where the artefacts of one model for one training set are: folder/<name>_feature.npy, ...

    where: the options that name the place to the tools, config: what extract_features wants before
    them.
    """

    folder: Path
    name: str
    where: str
    config: str = ""

    def path(self, kind: str, T: float = 0.9) -> Path:
        """Of an artefact of this kind."""
        return artefact_path(kind, self.folder.parent, self.folder.name, self.name, T)

    def command(self, kind: str, T: float = 0.9) -> str:
        """The command that makes it."""
        begin = KINDS[kind][1].format(T=T)
        config = f" {self.config}" if begin == _EXTRACT and self.config else ""
        return f"{begin}{config} {self._where(begin)}"

    def _where(self, begin: str) -> str:
        # extract_features takes keys as a config has them
        for_keys = self.config and begin == _EXTRACT
        return self.where.replace("--feature-save ", "feature_save=") if for_keys else self.where


def place_of_sd(
    sd: str, feature_save: str | Path, config: str = "<the old model's config>"
) -> Place:
    """MixBCT's: feature_save/<scenario>/<SD>. config: that of the model, for the commands.

    Raises BctError for a name that ends in no shard.
    """
    where = f"--SD {sd}"
    if Path(feature_save) != ROOT / "feature_save":
        where += f" --feature-save {shlex.quote(str(feature_save))}"
    return Place(Path(feature_save) / scenario_of(sd), sd, where, config)


def place_of_model(folder: str | Path, rec: str | Path) -> Place:
    """A model's own folder: <folder>/features/<set>, see bct.scenarios.set_name."""
    where = f"--model {shlex.quote(str(folder))} --rec {shlex.quote(str(rec))}"
    return Place(Path(folder) / "features", set_name(rec), where)


def place_given(parser: Parser, args: argparse.Namespace) -> Place:
    """What bct.command.artefact_parser has read. Exit code 2 if it names no place, or two."""
    if named_by_folder(parser, args):
        return place_of_model(args.model, args.rec)
    return place_of_sd(args.SD, args.feature_save)


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def write_artefact(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, **manifest: Any
) -> Iterator[np.ndarray]:
    """Yields a memory-mapped array to fill. File and manifest appear when the block ends well.

    Args:
        manifest: what the array is and was made from; rows, dim, dtype, digest and date are added.
    """
    refuse_to_replace(manifest_path(path), bool(manifest.get("imported")))
    with atomic(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
        take_room(temporary)
        yield array
        array.flush()
        digest = _digest(array)
        manifest_path(path).unlink(missing_ok=True)  # one from before digests fits any array
    write_json(manifest_path(path), _about(manifest, shape, dtype, digest))


def take_room(path: Path) -> None:
    """Takes a mapped file's room on the disk. OSError without: a write would end the process."""
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def adopt_artefact(path: Path, whole: Path, **manifest: Any) -> None:
    """Makes an artefact of a .npy that is complete, on the same file system: it gets the name
    `path` and a manifest as write_artefact writes it. BctError where that would replace another
    .json."""
    refuse_to_replace(manifest_path(path))
    array = np.lib.format.open_memmap(whole, "r")
    about = _about(manifest, array.shape, array.dtype, _digest(array))
    write_json(manifest_path(path), about)  # first: a kill then leaves `whole` for another try
    os.replace(whole, path)


def _about(
    manifest: dict[str, Any], shape: tuple[int, ...], dtype: npt.DTypeLike, digest: str
) -> dict[str, Any]:
    return {
        **manifest,
        "rows": shape[0],
        "dim": shape[1] if len(shape) > 1 else manifest.get("dim"),
        "dtype": str(np.dtype(dtype)),
        "digest": digest,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def was_imported(path: Path) -> bool:
    """Whether an artefact was brought by tools/import_features.py, so that no tool makes it."""
    try:
        said = read_json(manifest_path(path))
    except BctError:
        return False
    return isinstance(said, dict) and bool(said.get("imported"))


def refuse_to_replace(path: Path, importing: bool = False) -> None:
    """Raises BctError if a .json is no manifest: model.npy would take a model.json for its own; and
    for embeddings that somebody has brought, which no tool makes again."""
    try:
        said = read_json(path)
    except BctError:
        return  # there is none, or a damaged one of an array that is made again
    if not isinstance(said, dict) or not {"rows", "dtype"} <= said.keys():
        raise BctError(
            f"{path} is no manifest of ours and would be replaced",
            f"give the array another name than {path.stem}.npy",
        )
    if said.get("imported") and not importing:
        raise BctError(
            f"{path.with_suffix('.npy')} was imported and would be replaced",
            "move it away if you want it made anew, or give another folder",
        )


@contextmanager
def shared_artefact(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, **manifest: Any
) -> Iterator[np.ndarray]:
    """write_artefact for all ranks: rank 0 creates the file, the others fill the same one."""
    name: list[str | None] = [None]
    with ExitStack() as stack:
        if distributed.writes():
            array = stack.enter_context(write_artefact(path, shape, dtype, **manifest))
            name[0] = str(array.filename)
        if distributed.world_size() > 1:
            dist.broadcast_object_list(name, src=0)
        if not distributed.writes():
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
        raise BctError(f"artefact {path} does not exist", _or_elsewhere(path, make))
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


def _or_elsewhere(path: Path, make: str) -> str:
    """What to do about a missing artefact: it may have been made in another folder."""
    if path.parent.name == "features" and not path.parent.parent.is_dir():  # a model's own
        return f"there is no folder {path.parent.parent}: check the path"
    if found := elsewhere(path):
        return f"{found}; or {make}"
    if "--SD" in make and "--feature-save" not in make and "feature_save=" not in make:
        return f"{make}; if it is made, name its folder: --feature-save, in a config feature_save="
    return make


def entries(manifest: Any, path: str | Path, *keys: str) -> dict[str, Any]:
    """These entries of an artefact's manifest. Raises BctError if it has not all of them."""
    missing = [key for key in keys if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise BctError(
            f"{Path(path).with_suffix('.json')} has no entry {missing[0]!r}, so it is no manifest",
            f"make it and {Path(path).name} again with the tool that wrote them",
        )
    return {key: manifest[key] for key in keys}


def open_features(place: Place) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Embeddings (n, D), labels (n,) and what a further artefact inherits from their manifest.

    Raises BctError when one is missing or damaged, or when they do not belong together.
    """
    how = place.command("old_embedding")
    features, manifest = open_artefact(place.path("old_embedding"), how)
    labels, of_labels = open_artefact(place.path("old_embedding_label"), how)
    keys = ("model", "data", "parity", "amp", "weights", "data_path")
    of_these = {"absent": manifest["absent"]} if manifest.get("absent") else {}
    of_these["view"] = manifest.get("view")  # None: that of faces
    if manifest.get("imported"):  # the model's digest says nothing of which rows were brought
        of_these["features"] = manifest.get("digest")
    made_from = entries(manifest, features.filename, *keys)
    if made_from != entries(of_labels, labels.filename, *keys):
        raise BctError(
            f"embeddings and labels of {place.name} come from different runs", f"make both: {how}"
        )
    return features, np.array(labels), made_from | of_these


def make_artefact(
    kind: str,
    place: Place,
    compute: Callable[[np.ndarray, np.ndarray, list[int], bool], np.ndarray],
    said: Callable[[np.ndarray], str],
    dtype: Callable[[int], np.dtype] | None = None,
    **settings: float,
) -> str:
    """Makes an artefact from the embeddings of an old model, unless a valid one is there.

    Args:
        compute: embeddings (n, D), labels (n,), a list that takes the rows of zeros, whether the
            embeddings are those of a part of the images -> the array.
        said: the array -> what is in it, for people.
        dtype: width of the embeddings -> the array's type, if an older version made another.
        settings: of the artefact, T; they are in its manifest.

    Returns:
        What was done, one line; another one if rows of zeros were left out.

    Raises BctError like open_features and `compute`.
    """
    path = place.path(kind, **settings)
    features, labels, made_from = open_features(place)
    made_from |= {"kind": kind, **settings}
    of_type = {"dtype": str(dtype(features.shape[1]))} if dtype else {}
    if is_valid(path, **made_from, **of_type):
        return f"{path} is up to date: reusing it"
    zeros: list[int] = []
    array = compute(features, labels, zeros, "absent" in made_from)
    if array.dtype.names:
        made_from["dim"] = features.shape[1]
    with write_artefact(path, array.shape, array.dtype, **made_from) as out:
        out[:] = array
    lines = [f"{path}: {said(array)}"]
    if "absent" in made_from:
        lines.append(f"{features.filename}: {len(zeros)} of {len(features)} rows are absent")
    elif zeros:
        lines.append(
            zeros_remark(str(features.filename), np.array(zeros), len(features), so="are left out")
        )
    return "\n".join(lines)
