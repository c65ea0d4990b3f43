"""Splits a data set into the old and the new model's parts, by classes and by images.

    python tools/split_dataset.py dataset/ms1m-retinaface-t1
    python tools/split_dataset.py ../shared/data/lfw --out work_dirs/lfw/data --ratio 30
    python tools/split_dataset.py dataset/imagenet --classes 500 --out work_dirs/imagenet
    python tools/split_dataset.py dataset/cifar-100-python --split cifar100_first50_lex
    python tools/split_dataset.py dataset/GLDv2/label_81313.txt --split advbct --out work_dirs/gldv2

With --ratio p it writes, beside the data set or into --out,

    train_part_<p>_class       the first round(p % * C) classes, labels counted from 0
    train_part_<100-p>_class   the others, labels counted from 0
    train_part_<p>_data        of each class with n images the first max(1, round(p % * n))
    train_part_<100-p>_data    the others; where there are none, a class's last image goes to both

The second of two halves is called train_part_50_class_rest. Rounding is Python's, half to even, as
in the MixBCT reference. --classes n gives the first n classes instead, --order says in which order
of their names, --split is one that was published:

    cifar100_first50_lex   the 50 first of CIFAR-100's labels 0..99 sorted as strings: 0-5, 10-49,
                           50-53; what ml-fct and BT-2 call the first 50 (their folders' order)
    cifar100_first50_num   labels 0-49
    advbct                 AdvBCT's, see tools/formats/advbct_lists.py: with --ratio 30

    <stem>_old_30percent_class.txt    <stem>_old_30percent_data.txt     the old model's
    <stem>_new_100percent_class.txt   <stem>_new_100percent_data.txt    the new one's, if extended
    <stem>_new_70percent_class.txt    <stem>_new_70percent_data.txt     the new one's, if open

where --stem is gldv2_train, market1501_train or ms1m_train by what the set is, else its name. Old
labels are a prefix of the new ones; the manifests' class_names are the set's labels, or its names.
A record file's parts are record files: images are copied byte for byte, renumbered from key 1,
behind an insightface header [n + 1, C]. Those of image folders, lists and CIFAR, and AdvBCT's
of any set, are lists, see bct/data/image_lists.py, each with a JSON manifest; with --out there is
a list of the whole set, too, but for AdvBCT's.
Images of a class are taken in the order of their names, CIFAR's in their own. Labels have to be
0 ... C-1, each with an image. A part's manifest is written first and the part last, so that the
same command goes on where it was killed.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from bct.command import ADVICE, Parser, file_path, positive, run_cli, some_text, takes
from bct.data.cifar import Cifar
from bct.data.image_files import ImageFiles
from bct.data.image_lists import list_root, list_text
from bct.data.record_writer import RecordWriter, claim
from bct.data.recordio import Header
from bct.data.sets import RecordList, RecordSet, open_images
from bct.errors import BctError
from bct.files import atomic
from bct.keys import whole
from bct.log import progress
from bct.scenarios import shard_stem
from tools.formats import advbct_lists

PUBLISHED = {"cifar100_first50_lex": str, "cifar100_first50_num": int}  # what labels are sorted as
ADVBCT = "advbct"
STEMS = {  # AdvBCT's names for data sets, by the names of what is opened
    **dict.fromkeys(("label_81313", "label_20", "train_clean"), "gldv2_train"),
    **dict.fromkeys(("bounding_box_train", "market1501"), "market1501_train"),
}
percentage = takes(whole(30, 1, 99))
Listable = ImageFiles | Cifar | RecordList
Part = tuple[np.ndarray, np.ndarray]  # indices and their new labels, int64 (n,)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("rec", type=file_path, help="a data set as in the key `rec` of configs")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--ratio", type=percentage, help="per cent for the old model; default: 30")
    size.add_argument("--classes", type=positive, help="so many classes for the old model")
    parser.add_argument("--split", choices=(*PUBLISHED, ADVBCT), help="a published split")
    parser.add_argument("--order", choices=("numeric", "lexicographic"), help="of class names")
    parser.add_argument("--by", choices=("class", "data", "both"), help="default: what fits")
    parser.add_argument(
        "--out", type=file_path, help="folder for the parts; default: beside the set"
    )
    parser.add_argument("--parity", choices=("corrected", "published"), help="of --split advbct")
    parser.add_argument("--stem", type=some_text, help="of the names of its lists")
    args = parser.parse_args()
    if args.split in PUBLISHED and (args.ratio or args.classes):
        parser.error(f"--split {args.split} says how many classes{ADVICE}give it alone")
    if args.split == ADVBCT:
        return split_as_advbct(args)
    if args.parity or args.stem:
        raise BctError("--parity and --stem are about --split advbct", "leave them out")
    of_classes = args.classes is not None or args.split or args.order
    if of_classes and args.by not in (None, "class"):
        raise BctError("--classes, --split and --order are about classes", "leave --by out")
    kinds = ("class",) if of_classes else ("class", "data")
    dataset, stem, out = opened(args)

    percent, classes = args.ratio or 30, np.arange(dataset.num_classes)
    for kind in kinds if args.by in (None, "both") else (args.by,):
        if kind == "data":
            names = dataset.names if isinstance(dataset, ImageFiles) else None
            parts = split_by_data(dataset.labels, percent, names)
            groups = [classes, classes]
        else:
            order = class_order(dataset, args.order, args.split)
            first = 50 if args.split else args.classes
            if first is not None:
                percent = min(max(round(100 * first / len(order)), 1), 99)
            else:
                first = round(percent / 100 * len(order))
            parts = split_by_class(dataset.labels, percent, order, first)
            groups = np.split(order, [first])
        paths = part_paths(out / stem.name, percent, kind)
        for part, group, path in zip(parts, groups, paths, strict=True):
            if isinstance(dataset, RecordSet):
                write_part(dataset, part, path.with_name(f"{path.name}.rec"))
            else:
                write_list_part(dataset, part, group, path.with_name(f"{path.name}.txt"))
    whole = out / f"{stem.name}.txt"
    if (
        args.out
        and not isinstance(dataset, RecordSet)
        and whole.resolve() != dataset.path.resolve()
    ):
        write_list_part(dataset, (np.arange(len(dataset)), dataset.labels), classes, whole)


def opened(args: argparse.Namespace) -> tuple[RecordSet | Listable, Path, Path]:
    """The data set, its path as parts are called after it, and the folder for them."""
    dataset, stem = open_images(args.rec), shard_stem(args.rec)
    if isinstance(dataset, RecordSet):
        stem = dataset.path.with_suffix("")
    out = args.out or stem.parent
    if args.out is None and not os.access(out, os.W_OK):
        raise BctError(f"{out} can't be written to", "give a folder for the parts: --out")
    return dataset, stem, out


def split_as_advbct(args: argparse.Namespace) -> None:
    """Writes AdvBCT's lists by classes, by images or both."""
    if args.classes is not None or args.order:
        raise BctError("--split advbct has its own order and number of classes", "give --ratio")
    odd = args.stem and ("/" in args.stem or not args.stem.isprintable())
    if odd or args.stem in (".", ".."):
        raise BctError(f"--stem {args.stem!r} is no start of a name", "give the folder as --out")
    dataset, path, out = opened(args)
    if isinstance(dataset, RecordSet):
        dataset = RecordList.of(dataset)
    of_records = isinstance(dataset, RecordList)
    stem = args.stem or STEMS.get(path.name, "ms1m_train" if of_records else path.name)
    ways = {"class": advbct_lists.by_class, "data": advbct_lists.by_data}
    published, lists = args.parity == "published", []
    for way in ways if args.by in (None, "both") else (args.by,):
        lists += ways[way](dataset.labels, args.ratio or 30, published)
    names = dataset.class_names or [str(label) for label in range(dataset.num_classes)]
    wanted = [
        ((part.images, part.labels), part.classes, out / f"{stem}_{part.name}.txt", names)
        for part in lists
    ]
    for one in wanted:  # before any is written: a list of all classes differs between ratios
        if os.path.lexists(one[2]):
            is_there(dataset, one[2], *list_of(dataset, *one))
    for one in wanted:
        write_list_part(dataset, *one)


def class_order(dataset: RecordSet | Listable, order: str | None, split: str | None) -> np.ndarray:
    """int64 (C,): all labels, the old model's first. BctError where it needs other names."""
    labels, names = range(dataset.num_classes), dataset.class_names
    if split:
        if len(labels) != 100:
            raise BctError(
                f"{split} is a split of CIFAR-100, {dataset.path} has {len(labels)} classes",
                "give .../cifar-100-python, or a folder with its 100 classes",
            )
        numbered = names is not None and all(name.isdigit() for name in names)
        number = [int(name) for name in names] if numbered else labels  # ml-fct's folders: 0..99
        return np.array(sorted(labels, key=lambda label: PUBLISHED[split](number[label])))
    if order is None:
        return np.array(labels)
    if names is None:
        raise BctError(f"the classes of {dataset.path} have no names", "leave --order out")
    if order == "numeric" and not all(name.isdigit() for name in names):
        other = next(name for name in names if not name.isdigit())
        raise BctError(f"class {other!r} is not a number", "use --order lexicographic")
    key = int if order == "numeric" else str
    return np.array(sorted(labels, key=lambda label: key(names[label])))


def split_by_class(
    labels: np.ndarray, percent: int, order: np.ndarray | None = None, first: int | None = None
) -> list[Part]:
    """The two parts of a split by classes.

    Args:
        order: int64 (C,), all labels, the first ones for the old model; default: ascending.
        first: how many are the old model's; default: percent of them.
    """
    order = np.arange(labels.max() + 1) if order is None else order
    first = round(percent / 100 * len(order)) if first is None else first
    place = np.argsort(order)[labels]
    parts = np.flatnonzero(place < first), np.flatnonzero(place >= first)
    if not all(map(len, parts)):
        raise BctError(
            f"{first} of {len(order)} classes for the old model leaves a part empty",
            "choose another --ratio or --classes, or a larger data set",
        )
    return [(part, place[part] - start) for part, start in zip(parts, (0, first), strict=True)]


def split_by_data(labels: np.ndarray, percent: int, names: np.ndarray | None = None) -> list[Part]:
    """The two parts of a split by images; within a class they count in the order of their names,
    or as they come."""
    keys = (labels,) if names is None else (names, labels)  # the last one counts most
    order = np.lexsort(keys)
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(labels), np.int64)  # position of an image within its class
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    kept = np.array([max(1, round(percent / 100 * n)) for n in sizes])
    in_old = rank < kept[labels]
    in_new = ~in_old | (rank == sizes[labels] - 1)
    return [(np.flatnonzero(mask), labels[mask]) for mask in (in_old, in_new)]


def part_paths(stem: Path, percent: int, kind: str) -> list[Path]:
    """Of both parts, without a suffix."""
    second = f"{100 - percent}_{kind}" if percent != 50 else f"50_{kind}_rest"
    return [stem.with_name(f"{stem.name}_part_{name}") for name in (f"{percent}_{kind}", second)]


def write_list_part(
    dataset: Listable,
    part: Part,
    classes: np.ndarray,
    path: Path,
    names: list[str] | None = None,
) -> None:
    """Writes the list of one part and its manifest, unless they are there.

    Args:
        classes: the labels in `dataset` of the part's labels 0, 1, ...
        names: of the classes; default: the set's.
    """
    text, about = list_of(dataset, part, classes, path, names)
    if is_there(dataset, path, text, about):
        return print(f"{path} is up to date: reusing it")
    claim(path, {path.with_suffix(".json"): about})
    with atomic(path) as temporary:
        temporary.write_bytes(text)
    print(f"{path}: {len(part[0])} images, {len(classes)} classes")


def list_of(
    dataset: Listable, part: Part, classes: np.ndarray, path: Path, names: list[str] | None
) -> tuple[bytes, str]:
    """The list of one part and its manifest, as they are written; see write_list_part."""
    indices, labels = part
    text = list_text(path, dataset.root, dataset.names[indices].tolist(), labels)
    names = dataset.class_names if names is None else names
    manifest = {
        "source": dataset.fingerprint,
        "root": list_root(path, dataset.root),
        "class_names": None if names is None else [names[label] for label in classes],
        "images": len(indices),
        "classes": len(classes),
    }
    return text, json.dumps(manifest, indent=2) + "\n"


def is_there(dataset: Listable, path: Path, text: bytes, about: str) -> bool:
    """Whether a list and its manifest lie there. BctError for another file in its place."""
    if not os.path.lexists(path):
        return False
    if is_file_of(path, text) and is_file_of(path.with_suffix(".json"), about.encode()):
        return True
    raise other(path, dataset.path)


def write_part(dataset: RecordSet, part: Part, path: Path) -> None:
    """Writes one part and its manifest, unless a valid one is there."""
    indices, labels = part
    classes = int(labels.max()) + 1
    manifest = {"source": dataset.fingerprint, "images": len(indices), "classes": classes}
    side = path.with_suffix(".json")
    about = json.dumps(manifest, indent=2) + "\n"
    if os.path.lexists(path):
        if path.is_file() and is_file_of(side, about.encode()):
            return print(f"{path} is up to date: reusing it")
        raise other(path, dataset.path)
    claim(path, {side: about})
    with RecordWriter(path) as writer:
        writer.write(0, Header([len(indices) + 1, classes]), b"")
        pairs = zip(indices, labels, strict=True)
        for key, (index, label) in enumerate(progress(pairs, path.stem, len(indices), "img"), 1):
            header, data = dataset.reader.read(int(dataset.keys[index]))
            if not len(data):
                raise dataset.reader.broken(int(dataset.keys[index]), "it has no data")
            new_label = float(label)
            if np.ndim(header.label):
                new_label = header.label.copy()
                new_label[0] = label
            writer.write(key, Header(new_label, key, header.id2), data)
    print(f"{path}: {len(indices)} images, {classes} identities")


def is_file_of(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def other(path: Path, source: Path) -> BctError:
    return BctError(
        f"{path} exists and was not made from {source} in this way",
        "move it away, or give another --out",
    )


if __name__ == "__main__":
    run_cli(main)
