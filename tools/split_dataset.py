"""Splits a record file into the old and the new model's parts, by identities and by images.

    python tools/split_dataset.py dataset/ms1m-retinaface-t1
    python tools/split_dataset.py ../shared/data/lfw --out work_dirs/lfw/data --ratio 30

With --ratio p it writes, beside the .rec or into --out,

    train_part_<p>_class       the first round(p % * C) identities, labels unchanged
    train_part_<100-p>_class   the others, labels counted from 0 again
    train_part_<p>_data        of each identity with n images the first max(1, round(p % * n))
    train_part_<100-p>_data    the others; an identity's only image goes to both

Images are copied byte for byte, renumbered from key 1, behind an insightface header [n + 1, C].
Rounding is Python's, half to even, as in the MixBCT reference.
"""

import argparse
from pathlib import Path

import numpy as np

from bct.datasets import RecordFaces, open_faces
from bct.errors import BctError, run_cli
from bct.files import read_json, write_json
from bct.log import progress
from bct.recordio import Header, RecordWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rec", type=Path, help="a .rec file or the folder of train.rec")
    parser.add_argument("--ratio", type=int, default=30, help="per cent for the old model")
    parser.add_argument("--by", choices=("class", "data", "both"), default="both")
    parser.add_argument("--out", type=Path, help="folder for the parts; default: beside the .rec")
    args = parser.parse_args()
    if not 1 <= args.ratio <= 99:
        raise BctError(f"--ratio {args.ratio} is not a percentage", "give 1 to 99, such as 30")
    faces = open_faces(args.rec)
    if not isinstance(faces, RecordFaces):
        raise BctError(
            f"{args.rec} is an image folder", "make a .rec first: tools/folder_to_rec.py"
        )
    out = args.out or faces.path.parent
    for kind in ("class", "data") if args.by == "both" else (args.by,):
        rule = split_by_class if kind == "class" else split_by_data
        parts = rule(faces.labels, args.ratio)
        for percent, part in zip((args.ratio, 100 - args.ratio), parts, strict=True):
            write_part(faces, part, out / f"{faces.path.stem}_part_{percent}_{kind}.rec")


def split_by_class(labels: np.ndarray, percent: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(indices, their new labels)] of the two parts of an identity split."""
    first = round(percent / 100 * int(labels.max() + 1))
    old, new = np.flatnonzero(labels < first), np.flatnonzero(labels >= first)
    if len(old) == 0 or len(new) == 0:
        raise BctError(
            f"{percent} % of {labels.max() + 1} identities leaves a part empty",
            "choose another --ratio or a larger data set",
        )
    return [(old, labels[old]), (new, labels[new] - first)]


def split_by_data(labels: np.ndarray, percent: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(indices, their labels)] of the two parts of an image split; order within a class counts."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(labels), np.int64)  # position of an image within its identity
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    kept = np.array([max(1, round(percent / 100 * n)) for n in sizes])
    in_old = rank < kept[labels]
    in_new = ~in_old | (sizes[labels] == 1)
    return [(np.flatnonzero(mask), labels[mask]) for mask in (in_old, in_new)]


def write_part(faces: RecordFaces, part: tuple[np.ndarray, np.ndarray], path: Path) -> None:
    """Writes one part and its manifest, unless a valid one is there."""
    indices, labels = part
    classes = int(labels.max()) + 1
    manifest = {"source": faces.fingerprint, "images": len(indices), "classes": classes}
    side = path.with_suffix(".json")
    if path.is_file():
        if side.is_file() and read_json(side) == manifest:
            return print(f"{path} is up to date: reusing it")
        raise BctError(
            f"{path} exists and was not made from {faces.path} in this way",
            "move it away, or give another --out",
        )
    with RecordWriter(path) as writer:
        writer.write(0, Header([len(indices) + 1, classes]), b"")
        pairs = zip(indices, labels, strict=True)
        for key, (index, label) in enumerate(progress(pairs, path.stem, len(indices), "img"), 1):
            header, data = faces.reader.read(int(faces.keys[index]))
            new_label = float(label)
            if np.ndim(header.label):
                new_label = header.label.copy()
                new_label[0] = label
            writer.write(key, Header(new_label, key, header.id2), data)
    write_json(side, manifest)
    print(f"{path}: {len(indices)} images, {classes} identities")


if __name__ == "__main__":
    run_cli(main)
