"""Brings stored embeddings of an old model from elsewhere; the model itself may be gone.

    python tools/import_features.py f128_class70_feature.npy f128_class70_label.npy \\
        --rec dataset/train_part_70_class.rec -o work_dirs/old
    python tools/import_features.py old.npz --rec dataset/train.rec --of dataset/old.rec \\
        -o work_dirs/old
    python tools/import_features.py x_meta_radius_centernorm.json x_meta_theta_centernorm.json \\
        --rec dataset --of dataset/old.txt -o work_dirs/old

Takes MixBCT's files (features, labels, credible masks, averages), AdvBCT's two JSON files of class
centres, with radii and with angles, and any .npy, .npz or file of torch.save with embeddings (n, D)
and labels (n,); what a file is, is seen from what it holds. SET is the new model's training set.
Row i is the embedding of SET's image i, or of the image that --rows, --names or --of says; images
without a row are absent, and MixBCT, L2, NCCL, BCT, LCE, AdvBCT and FCT do without them. Labels, in
any numbering, have to tell the same classes apart as SET's; of class centres, --of says whose they
are. With a model, in the folder or given with -m, a few images are embedded anew. Writes
FOLDER/features/<set>_feature.npy, _label.npy, ... with manifests; a training names the folder:
old_model=FOLDER.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bct.command import Parser, file_path, pixels_option, run_cli, some_text
from bct.data.image_set import ImageSet
from bct.data.label_map import load_map, new_to_old
from bct.data.same_images import (
    Match,
    by_bytes,
    by_names,
    by_numbers,
    one_to_one,
    require_rows,
)
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import read_json, sha256, sha256_file
from bct.models.about import holds_model, model_in
from bct.models.confirm import confirm
from bct.models.model import Model, open_model, refuse_other_view
from bct.outputs import check_outputs
from bct.rows import BLOCK, present_rows, single_rows, unit_rows
from bct.stored.artefacts import Place, manifest_path, open_artefact, place_of_model, write_artefact
from bct.stored.foreign_files import Found, read_both, read_centres, read_files
from bct.stored.names import line_of
from bct.stored.vector_files import open_array

_OLD_SET = "--of is the set that the rows are of, --rec the new model's training set"
_END = re.compile(r"feature|label|avg_feature|class_statistics|credible_\w+_\d+_feature")


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("files", nargs="+", type=file_path, help="embeddings, labels, masks, averages, centres")
    add("--rec", type=file_path, required=True, metavar="SET", help="the new model's training set")
    add("-o", "--output", type=file_path, required=True, metavar="FOLDER", help="the old model's")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rows", type=file_path, help=".npy: each row's image, 0, 1, ... of SET")
    which.add_argument("--names", type=file_path, help="text: each row's image, as SET names it")
    which.add_argument("--of", type=file_path, metavar="OLD", help="set that the rows are of")
    add("--n2o-map", type=file_path, help="old class of each new one, where no labels say it")
    add("-m", "--model", type=file_path, help="the model that made them, if it is still there")
    add("-net", "--network", type=some_text, help="its network, e.g. r50")
    pixels_option(parser)
    published = "published: of images mirrored at random, as MixBCT's tool makes them"
    add("--parity", choices=("corrected", "published"), help=published)
    add("--overwrite", action="store_true", help="replace what was imported for this set before")
    for line in brought(parser.parse_args()):
        print(line)


def brought(args: argparse.Namespace) -> list[str]:
    """Checks and writes everything; what was done, line by line."""
    images, place = open_images(args.rec), place_of_model(args.output, args.rec)
    found, model, said = read_files(args.files), the_model(args), []
    features, labels = found.get(("embeddings", 0.0)), found.get(("labels", 0.0))
    require_enough(args, found)
    match, old_class, parity = None, None, args.parity or "corrected"
    if features is None and args.of:
        old_class = classes_of(args.of, found, images)
    if features is not None:
        match, old_class = matched(args, features, images, said)
        if labels is not None:
            old_class = compared(labels, features, match, images, said)
        elif not (model or args.names or args.of):
            raise BctError(
                f"nothing shows that the rows of {features.file} are of the images of {args.rec}, "
                "in this order",
                "give their labels, or the model that made them: -m",
            )
        if model is not None:
            line, seen = confirm(model, images, features.array, match.index, match.row)
            said.append(line)
            parity = args.parity or seen
    if args.n2o_map:
        old_class = load_map(args.n2o_map, images.num_classes, 2**31)
    about = made_from(found, model, images, match) | {"parity": parity}
    parts = of_images(found, match, images, said) + of_classes(found, old_class, images, said)
    write(parts, about, place, args.overwrite, said)
    return said


def the_model(args: argparse.Namespace) -> Model | None:
    """The model that is given, or lies in the folder."""
    file = args.model
    if file is None and holds_model(args.output):
        file = model_in(args.output)
    if file is None:
        return None
    refuse_other_view(file, pixels=args.pixels)
    return open_model(file, args.network, pixels=args.pixels)


def require_enough(args: argparse.Namespace, found: dict[tuple[str, float], Found]) -> None:
    """Raises BctError for files and options that make no sense without embeddings."""
    kinds = {kind for kind, _ in found}
    if "embeddings" not in kinds:
        lost = kinds - {"means", "centres", "angles"}
        if lost or args.rows or args.names:
            raise BctError(
                f"{', '.join(sorted(lost)) or 'which image a row is of'} is given, and there are "
                "no embeddings",
                "give the file of embeddings, too",
            )


def classes_of(old: Path, found: dict[tuple[str, float], Found], images: ImageSet) -> np.ndarray:
    """The class in the set `old` of each of the set's, -1 where it has none: by the classes' names,
    else by the bytes of their images."""
    other = open_images(old)
    for kind in ("centres", "angles"):
        if part := found.get((kind, 0.0)):
            largest = int(read_centres(part.file)[0].max())
            if largest >= other.num_classes:
                raise BctError(
                    f"{part.file} has a class {largest}, {old} the classes 0 to "
                    f"{other.num_classes - 1}",
                    "--of is the set that the old model was trained on, and that the file is of",
                )
    if other.class_names and images.class_names:
        return new_to_old(images.class_names, other.class_names)
    match = by_bytes(other, images)
    theirs, ours = other.labels[match.row], images.labels[match.index]
    return one_to_one(theirs[match.alone], ours[match.alone], str(old), images)


def matched(
    args: argparse.Namespace, features: Found, images: ImageSet, said: list[str]
) -> tuple[Match, np.ndarray | None]:
    """Which row belongs to which image, rows of zeros to none; and with --of the old class of each
    new one."""
    rows, old_class = len(features.array), None
    if args.rows:
        if not args.rows.is_file():
            raise BctError(f"{args.rows} does not exist", "check the path")
        match = by_numbers(open_array(args.rows), args.rows, rows, images)
    elif args.names:
        match = by_names(args.names, rows, images, line_of)
    elif args.of:
        other = open_images(args.of)
        require_rows(rows, len(other), f"{args.of} has", _OLD_SET)
        match = by_bytes(other, images)
        theirs, ours = other.labels[match.row], images.labels[match.index]
        old_class = one_to_one(theirs[match.alone], ours[match.alone], str(args.of), images)
    else:
        if rows == images.num_classes:
            raise BctError(
                f"{features.file} has a row for each class of {args.rec}, not for each image",
                "call class means ..._avg_feature.npy; a classifier is for tools/import_model.py "
                "--classifier",
            )
        require_rows(rows, len(images), f"{args.rec} has")
        match = Match(np.arange(rows), np.arange(rows), np.ones(rows, bool))
    if args.names or args.of:
        said.append(
            f"{len(match.index)} of {len(images)} images have a row, {match.left} rows are of none"
        )
        if not match.alone.all():
            twice = int((~match.alone).sum())
            said.append(f"{twice} images are in a set more than once; equal ones have equal rows")
    there = present_rows(features.array)[match.row]
    if not there.all():
        said.append(f"{(~there).sum()} rows of {features.file} are zeros: these images are absent")
        match = Match(match.index[there], match.row[there], match.alone[there], match.left)
    return match, old_class


def compared(
    labels: Found, features: Found, match: Match, images: ImageSet, said: list[str]
) -> np.ndarray:
    """The old class of each new one, by the rows' labels. BctError unless they agree."""
    if len(labels.array) != len(features.array):
        raise BctError(
            f"{labels.file} has {len(labels.array)} labels, {features.file} {len(features.array)} "
            "rows",
            "give the labels of these rows",
        )
    sure = match.alone  # copies of an image may have several labels
    theirs, ours = labels.array[match.row[sure]], images.labels[match.index[sure]]
    if not np.array_equal(theirs, ours):
        said.append(f"{labels.file} numbers the classes otherwise; each is one of the set's")
    return one_to_one(theirs, ours, str(labels.file), images)


def made_from(
    found: dict[tuple[str, float], Found],
    model: Model | None,
    images: ImageSet,
    match: Match | None,
) -> dict[str, Any]:
    """What every manifest says of where the arrays come from."""
    files = sorted({part.file for part in found.values()})
    sources = [{"path": str(file.absolute()), "sha256": sha256_file(file)} for file in files]
    where = [match.index.tobytes(), match.row.tobytes()] if match else []
    gone = sha256("imported", *(source["sha256"] for source in sources), *where)
    return {
        "model": model.sha256 if model else gone,  # of a model that is gone: of what is left
        "weights": str(Path(model.file).absolute()) if model else None,
        "data": images.fingerprint,
        "data_path": str(images.path),
        "amp": None,
        "imported": True,
        "sources": sources,
    }


class Part(NamedTuple):
    """An artefact to write: fill(array), its shape and type, how many images lack it, and what
    else its manifest says."""

    kind: str
    fill: Callable[[np.ndarray], None]
    shape: tuple[int, ...]
    dtype: Any
    absent: int
    more: dict[str, Any]


def of_images(
    found: dict[tuple[str, float], Found], match: Match | None, images: ImageSet, said: list[str]
) -> list[Part]:
    """The artefacts with a row per image: embeddings, labels, masks."""
    if match is None:
        return []
    features, n = found["embeddings", 0.0], len(images)
    absent = n - len(match.index)
    if absent:
        said.append(f"{absent} of {n} images have no embedding: they are absent")

    def fill(out: np.ndarray) -> None:
        for start in range(0, len(match.index), BLOCK):
            part = slice(start, start + BLOCK)
            row = match.row[part]
            rows = single_rows(features.array[row], str(features.file), lambda k, row=row: row[k])
            out[match.index[part]] = rows

    shape = n, features.array.shape[1]
    parts = [
        Part("old_embedding", fill, shape, np.float32, absent, {}),
        given("old_embedding_label", images.labels, absent),
    ]
    for (kind, T), mask in found.items():
        if T:
            if len(mask.array) != len(features.array):
                raise BctError(
                    f"{mask.file} is a mask of {len(mask.array)} rows, {features.file} has "
                    f"{len(features.array)}",
                    "give the mask of these embeddings, or make one with tools/denoise.py",
                )
            own = np.zeros(n, bool)
            own[match.index] = mask.array[match.row]
            parts.append(given(kind, own, absent, T=T))
    return parts


def of_classes(
    found: dict[tuple[str, float], Found],
    old_class: np.ndarray | None,
    images: ImageSet,
    said: list[str],
) -> list[Part]:
    """The artefacts with a row per class. AdvBCT's centres, alone, give prototypes, too."""
    rows: dict[str, np.ndarray] = {}
    means, centres, angles = (found.get((kind, 0.0)) for kind in ("means", "centres", "angles"))
    if means is not None:
        every = np.arange(len(means.array))
        rows["old_prototype"] = by_class(
            means.file, every, unit_rows(means.array), old_class, images
        )
    files = [part.file for part in (centres, angles) if part is not None]
    if files:
        read = read_both(*files) if len(files) == 2 else read_centres(files[0])
        statistics = by_class(files[0], *read, old_class, images)
        rows["class_statistics"] = statistics
        if means is None and ("embeddings", 0.0) not in found:
            rows["old_prototype"] = unit_rows(statistics["centre"])
    widths = {part.array.shape[1] for (kind, _), part in found.items() if kind == "embeddings"}
    parts = []
    for kind, own in rows.items():
        vectors = own["centre"] if own.dtype.names else own
        widths.add(vectors.shape[1])
        without = ~vectors.any(axis=1)
        if without.any():
            said.append(f"{without.sum()} of {len(own)} classes are not in the old model's")
        parts.append(given(kind, own, int(without[images.labels].sum()), dim=vectors.shape[1]))
    if len(widths) > 1:
        raise BctError(
            f"the files have vectors of {' and '.join(map(str, sorted(widths)))} dimensions",
            "give files of one model",
        )
    return parts


def by_class(
    file: Path, labels: np.ndarray, rows: np.ndarray, old_class: np.ndarray | None, images: ImageSet
) -> np.ndarray:
    """rows (K,), of the old classes `labels` (K,), brought to the set's classes; zeros where there
    is none."""
    classes = images.num_classes
    if old_class is None:
        if sorted(labels.tolist()) != list(range(classes)):
            raise BctError(
                f"{file} has {len(labels)} classes, {images.path} {classes}, and nothing says "
                "which is which",
                "give --n2o-map, or the embeddings with their labels",
            )
        old_class = np.arange(classes)
    order = np.argsort(labels)
    place = np.searchsorted(labels, old_class, sorter=order).clip(max=len(labels) - 1)
    known = labels[order[place]] == old_class
    if not known.any():
        raise BctError(f"{file} has none of the classes of {images.path}", "check --n2o-map")
    out = np.zeros((classes, *rows.shape[1:]), rows.dtype)
    out[known] = rows[order[place[known]]]
    return out


def given(kind: str, array: np.ndarray, absent: int, **more: Any) -> Part:
    return Part(kind, lambda out: np.copyto(out, array), array.shape, array.dtype, absent, more)


def write(
    parts: list[Part], about: dict[str, Any], place: Place, overwrite: bool, said: list[str]
) -> None:
    """Writes the artefacts in the place of those imported before, if that was asked for."""
    paths = [place.path(part.kind, part.more.get("T", 0.9)) for part in parts]
    before = imported(place)
    for path in paths:
        if path not in before and (path.exists() or manifest_path(path).exists()):
            raise BctError(
                f"{path} was not imported and would be replaced",
                "move it and the .json beside it away, or import to another folder, -o",
            )
    if before and not overwrite:
        raise BctError(
            f"{before[0]} was imported before",
            "to replace all that was imported for this set, give all its files at once, with "
            "--overwrite",
        )
    check_outputs(*paths)
    of_these = {}
    for part, path in zip(parts, paths, strict=True):
        kind = "label" if part.kind == "old_embedding_label" else part.kind
        manifest = {**about, **part.more, "kind": kind}
        if part.absent:
            manifest["absent"] = part.absent
        if part.kind.startswith("credible"):
            manifest |= of_these
        with write_artefact(path, part.shape, part.dtype, **manifest) as out:
            part.fill(out)
        if part.kind == "old_embedding":
            of_these = {"features": open_artefact(path)[1]["digest"]}
        said.append(f"{path}: {' x '.join(map(str, part.shape))}")
    for path in set(before) - set(paths):
        path.unlink(missing_ok=True)
        manifest_path(path).unlink(missing_ok=True)
        said.append(f"{path}, which was imported before, is removed")


def imported(place: Place) -> list[Path]:
    """The artefacts of this set that an import has written."""
    found = []
    for file in sorted(place.folder.glob("*.json")):
        _, own, end = file.stem.rpartition(f"{place.name}_")
        if own and file.stem == own + end and _END.fullmatch(end):
            said = read_json(file, "move it away")
            if isinstance(said, dict) and said.get("imported"):
                found.append(file.with_suffix(".npy"))
    return found


if __name__ == "__main__":
    run_cli(main)
