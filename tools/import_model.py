"""Makes an old model of a network that was trained elsewhere, for every method.

    python tools/import_model.py backbone.pth --network r50 -o work_dirs/prod
    python tools/import_model.py model.onnx -o work_dirs/prod --classes names.txt
    python tools/import_model.py backbone.pth --network r50 -o work_dirs/prod \\
        --classifier rank_*_softmax_weight.pt

Takes what evaluations take: files of insightface, MixBCT, openBCT, AdvBCT, OpenCompatible, BT-2 and
torchvision, ONNX, and TorchScript if --network torchscript says that it is trusted. The folder then
stands for the old model: old_model=work_dirs/prod. It gets the weights by our names, model.pt, or a
copy of an ONNX or TorchScript file, model.json (network, how it sees an image, its classes),
classifier.pt if there is a classifier, and import.json, which says where all this came from.

Stored embeddings whose model is gone are for tools/import_features.py.
"""

import argparse
import datetime
import os
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones import NETWORKS
from bct.command import ADVICE, Parser, file_path, run_cli, some_text, takes
from bct.data.image_files import IMAGE_SUFFIXES
from bct.data.image_lists import ROOT_LINE
from bct.data.images import size_in_words
from bct.data.sets import open_images
from bct.data.views import AUGMENT, CROPS, PIXELS, View
from bct.distributed import say
from bct.errors import BctError
from bct.files import atomic, read_json, sha256_file, without_mark, write_json
from bct.keys import image_size, number
from bct.models.about import described_in, said_beside, view_of_model
from bct.models.classifiers import CLASSIFIER, Classifier, is_of_rank, read_classifier
from bct.models.onnx_model import OnnxBackbone, size_in
from bct.models.reference_checkpoints import TORCHSCRIPT, Script, said_in
from bct.models.weights import CLASSIFIERS, HEADS, load_backbone, network_of
from bct.safe.tensors import fill_tensors, read_state
from bct.streams import generator

RECORD = "import.json"
_FILES = ("model.pt", "model.onnx", "model.json", CLASSIFIER)
_OTHERS = View(224, *AUGMENT["resized_crop"], "imagenet")  # of networks that are not for faces
_SQUASHED = {  # of AdvBCT's and OpenCompatible's; the latter crop in training alone
    "timm:": View(224, *AUGMENT["none"], "imagenet"),
    "gem_": View(224, *AUGMENT["mirror"], "imagenet"),
}


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("weights", type=file_path, help="the network's file")
    add("-net", "--network", type=some_text, help="its name, e.g. r50, where the file has none")
    add("-o", "--output", type=file_path, required=True, help="the old model's folder")
    side = takes(image_size(None))
    add("--image-size", type=side, help="height and width of what it sees")
    add("--crop", choices=CROPS, help="resized: the centre of a larger image, as torchvision's do")
    add("--pixels", choices=tuple(PIXELS), help="how its pixels are normalised; raw: 0..255")
    mirror = argparse.BooleanOptionalAction
    add("--mirror", action=mirror, help="whether its training mirrored images")
    add("--classes", type=some_text, help="names, a file with one per line or a JSON list, in the "
        "order of the labels; or a data set that has them; or how many there are")  # fmt: skip
    add("--classifier", type=file_path, nargs="+", default=[], metavar="FILE",
        help="where it is apart: openBCT's old one, or all ranks' class centres")  # fmt: skip
    scale = takes(number(64.0, above=0))
    add("--classifier-scale", type=scale, help="of a cosine classifier; default: its system's")
    add("--overwrite", action="store_true", help="replace what an import has put there")
    args = parser.parse_args()
    if args.classifier_scale and not args.classifier:
        parser.error(f"--classifier-scale has no --classifier{ADVICE}name its file, too")
    print("\n".join(import_model(args)))


def import_model(args: argparse.Namespace) -> list[str]:
    """Writes the folder; lines that say what was taken. BctError, with nothing written, if any of
    it can't be used."""
    weights = args.weights
    if weights.is_dir():
        raise BctError(
            f"{weights} is a folder",
            f"a model's folder needs no import: old_model={weights}; else give the file in it",
        )
    if not weights.is_file():
        raise BctError(f"{weights} does not exist", "check the path")
    onnx = weights.suffix.lower() == ".onnx"
    _refuse(args.output, args.overwrite)
    said = described_in(weights) if weights.with_suffix(".json").is_file() else {}
    network = None if onnx else network_of(weights, args.network)
    view, whence = view_of(args, network)
    pixels = view.pixels if not onnx or args.pixels or "view" in said else None
    backbone = load_backbone(weights, args.network, size=view.size, pixels=pixels)
    if isinstance(backbone, OnnxBackbone) and pixels is None and backbone.takes_bytes:
        view, whence = view._replace(pixels="raw"), f"{whence}; its graph takes 0..255"
    if onnx and weights.with_name(f"{weights.name}.data").exists():
        raise BctError(
            f"{weights} keeps its weights in a second file",
            "give the model.pt it was made from, or join the two with the onnx package",
        )
    network = network or args.network or getattr(backbone, "network", None) or "onnx"
    try_out(weights, backbone, view)
    classifier = classifier_of(args, network, backbone.embedding_size)
    count, names = classes_of(args, said, classifier)
    about = {
        "network": network,
        "embedding_size": backbone.embedding_size,
        "head": "softmax" if classifier else None,
        "head_unit": classifier.unit if classifier else False,
        "num_classes": count,
        "class_names": names,
        "view": view.entries,
    }
    copied = onnx or isinstance(backbone, Script)
    write(args, "model.onnx" if onnx else "model.pt", about, classifier, backbone, copied)
    left = [] if copied else left_out(weights)
    seen = f"{view.pixels} pixels, {view.shape[0]} x {view.shape[1]}, crop {view.crop}"
    whole = (
        f"{count} classes, {'with' if names else 'without'} names" if count else "classes unknown"
    )
    return [
        f"{args.output}: {network}, {backbone.embedding_size}-d; {whole}",
        f"it sees {seen} ({whence})",
        "classifier: "
        + (
            _words(classifier, args.classifier_scale is not None)
            if classifier
            else "none; methods that need one make it of class means, or give --classifier"
        ),
        *([f"left out: {', '.join(left)}, which only training needs"] if left else []),
        f"next: old_model={args.output} for a method, after tools/extract_features.py --model "
        f"{args.output} --rec <training set>",
    ]


def left_out(weights: Path) -> list[str]:
    """The parts of a checkpoint that are neither network nor classifier, such as a discriminator's
    tensors."""
    others = tuple(head for head in HEADS if head not in CLASSIFIERS)
    counts = Counter(key.partition(".")[0] for key in read_state(weights) if key.startswith(others))
    return [f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in counts.items()]


def _words(classifier: Classifier, given: bool) -> str:
    kind = "of unit embeddings" if classifier.unit else "linear"
    lengths = classifier.weight.norm(dim=1)
    if classifier.unit and torch.allclose(lengths, lengths[:1], rtol=1e-4):
        says = "as given" if given else "--classifier-scale says otherwise"
        kind += f", scale {lengths[0]:.4g} ({says})"
    return f"{len(classifier.weight)} rows, {kind}{'' if classifier.bias is None else ', bias'}"


def view_of(args: argparse.Namespace, network: str | None) -> tuple[View, str]:
    """How the network sees an image, and who says so.

    Raises BctError for TorchScript, of which nothing is known, unless the options say it.
    """
    keys = {
        "size": args.image_size,
        "crop": args.crop,
        "pixels": args.pixels,
        "mirror": args.mirror,
    }
    given = {key: value for key, value in keys.items() if value is not None}
    if "view" in said_beside(args.weights):
        usual, whence = view_of_model(args.weights), f"as the .json beside {args.weights} says"
    elif network == TORCHSCRIPT and not {"size", "pixels"} <= given.keys():
        raise BctError(
            f"{args.weights} does not say how it sees an image",
            "say it, such as --image-size 224 --crop resized --pixels imagenet",
        )
    else:
        # a "+basis" is of the same kind as its body
        faces = network is None or network.partition("+")[0] in NETWORKS
        others = [view for start, view in _SQUASHED.items() if str(network).startswith(start)]
        usual, whence = View() if faces else [*others, _OTHERS][0], "as such networks usually do"
        size = size_in(args.weights) if network is None else None
        if others:
            size = said_in(args.weights).size
        if size is not None:
            usual, whence = (
                usual._replace(size=size),
                f"{size_in_words(size)} pixels by the file, else {whence}",
            )
    if not given:
        return usual, f"{whence}; --image-size, --crop, --pixels say otherwise"
    if {"size", "crop", "pixels"} <= given.keys():
        return usual._replace(**given), "as given"
    return usual._replace(**given), f"{whence}; {', '.join(given)} as given"


@torch.no_grad()
def try_out(weights: Path, backbone: nn.Module, view: View) -> None:
    """Embeds two images of noise. BctError if what comes out is of no use."""
    shape = 2, 3, *view.shape
    images = torch.randn(shape, generator=generator(torch.device("cpu"), "noise", 0))
    try:
        rows = backbone.eval()(images).float()
    except BctError:
        raise
    except (RuntimeError, ValueError) as error:
        raise BctError(
            f"{weights} can't embed images of {size_in_words(view.size)} pixels "
            f"({str(error).splitlines()[0]})",
            "say which it takes: --image-size",
        ) from None
    if not torch.isfinite(rows).all() or not rows.any() or torch.equal(rows[0], rows[1]):
        raise BctError(
            f"{weights} gives two images of noise embeddings that are not finite, or alike",
            "check that these are the trained weights",
        )


def classifier_of(args: argparse.Namespace, network: str, width: int) -> Classifier | None:
    """That of --classifier, else the network file's own, if it holds one of its width.

    Raises BctError for one of --classifier that is none, or of another width.
    """
    if args.classifier:
        found = read_classifier(args.classifier, args.classifier_scale, network)
        if not all(t.isfinite().all() for t in found.tensors().values()):
            raise BctError(
                f"{args.classifier[0]} is not finite (NaN or infinity)", "give the trained one"
            )
        if found.weight.shape[1] != width:
            raise BctError(
                f"{args.classifier[0]} is of embeddings of {found.weight.shape[1]} dimensions, the "
                f"network gives {width}",
                "give the classifier it was trained with",
            )
        return found
    if args.weights.suffix.lower() == ".onnx":
        return None
    if is_of_rank(args.weights):
        say(f"{args.weights} may hold a part of the class centres: name them, --classifier")
        return None
    try:
        found = read_classifier([args.weights], None, network)
    except BctError:  # most networks come without one
        return None
    if found.weight.shape[1] != width:
        say(
            f"{args.weights} holds a classifier of {found.weight.shape[1]}-d embeddings, the "
            f"network gives {width}: it is left out"
        )
        return None
    return found._replace(unit=found.unit or bool(said_beside(args.weights).get("head_unit")))


def classes_of(
    args: argparse.Namespace, said: dict[str, Any], classifier: Classifier | None
) -> tuple[int | None, list[str] | None]:
    """How many classes the model knows, and their names, as far as that is said.

    Raises BctError where that contradicts the classifier.
    """
    rows = None if classifier is None else len(classifier.weight)
    count, names = rows, None
    if args.classes:
        count, names = _read_classes(args.classes)
    elif said.get("num_classes") is not None:
        count, names = said["num_classes"], said.get("class_names")
    if rows not in (None, count):
        raise BctError(
            f"the classifier has {rows} rows, but there are {count} classes by "
            f"{'--classes' if args.classes else 'the .json beside the weights'}",
            "give the classes it was trained on, in the order of its labels; of class centres the "
            "files of all ranks",
        )
    return count, names


def _read_classes(given: str) -> tuple[int, list[str] | None]:
    path = Path(given)
    if given.isdecimal() and not path.exists() and 0 < int(given) < 2**31:
        return int(given), None
    if path.suffix == ".json" and path.is_file():
        names = read_json(path, "give a JSON list of names")
    elif path.suffix in (".txt", "") and path.is_file() and not _is_list(path):
        text = without_mark(path, path.read_bytes()).decode("utf-8", "surrogateescape")
        names = text.split("\n")
        names = [name.removesuffix("\r") for name in (names[:-1] if names[-1] == "" else names)]
    else:
        images = open_images(path)
        return images.num_classes, images.class_names
    fits = isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)
    if not fits or len(set(names)) < len(names):
        raise BctError(
            f"{path} is no list of class names, each once",
            "give one name per line in the order of the labels, or a JSON list of them",
        )
    return len(names), names


def _is_list(path: Path) -> bool:
    """Whether a text file is a list of images: a root, or an image and its label. Names of classes
    may end in a number, too."""
    with open(path, "rb") as file:
        line = file.readline(1 << 16)
    if line.startswith(ROOT_LINE):
        return True
    name, *label = line.rsplit(None, 1) or [b""]
    suffix = os.fsdecode(os.path.splitext(name)[1]).lower()
    return bool(label) and label[0].isdigit() and suffix in IMAGE_SUFFIXES


def _refuse(output: Path, overwrite: bool) -> None:
    """Raises BctError unless the folder is empty of models, or of one that may be replaced."""
    if (output / "run.json").exists():
        raise BctError(f"{output} holds a training run", "choose another folder, -o")
    ours = _imported(output)
    for name in _FILES:
        if not (output / name).exists():
            continue
        if name not in ours:
            raise BctError(
                f"{output} holds {name}, which no {RECORD} names", "choose another folder, -o"
            )
        if not overwrite:
            raise BctError(
                f"{output} holds a model that was imported from {ours[name] or 'elsewhere'}",
                "choose another folder, -o, or pass --overwrite",
            )


def _imported(output: Path) -> dict[str, str]:
    """The files that an import has put there, each with where the model came from."""
    path = output / RECORD
    said = read_json(path) if path.is_file() else {}
    files = said.get("files") if isinstance(said, dict) else None
    if path.is_file() and not isinstance(files, list):
        raise BctError(f"{path} is no record of an import", "choose another folder, -o")
    return {name: str(said.get("source", "")) for name in files or [] if isinstance(name, str)}


def write(
    args: argparse.Namespace,
    name: str,
    about: dict[str, Any],
    classifier: Classifier | None,
    backbone: nn.Module,
    copied: bool,
) -> None:
    """Writes the folder's files; the record, which names them, before them.

    What an import before has put there goes when all of the new is on the disk; it may be what is
    imported. While model.json is away, nothing takes the new weights for those of the old one.
    """
    output = args.output
    output.mkdir(parents=True, exist_ok=True)
    files = [name, "model.json", *([CLASSIFIER] if classifier else [])]
    before = _imported(output)
    record = {
        "source": str(args.weights.absolute()),
        "sha256": sha256_file(args.weights),
        "classifier": [str(path.absolute()) for path in args.classifier],
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "files": [*files, *(old for old in before if old not in files)],
    }
    write_json(output / RECORD, record)
    with ExitStack() as written:
        apart = written.enter_context(atomic(output / CLASSIFIER)) if classifier else None
        weights = written.enter_context(atomic(output / name))
        if apart is not None:
            fill_tensors(apart, classifier.tensors(), output / CLASSIFIER)
        if copied:
            shutil.copyfile(args.weights, weights)
        else:
            fill_tensors(weights, backbone.state_dict(), output / name)
        for old in before.keys() & set(_FILES) - {name}:
            (output / old).unlink(missing_ok=True)
    digest = sha256_file(output / name)
    write_json(output / "model.json", {**about, "sha256": digest, "source": record["source"]})
    write_json(output / RECORD, {**record, "files": files})


if __name__ == "__main__":
    run_cli(main)
