"""Packs a folder of identity folders into a record file, image files passed through byte for byte.

    python tools/folder_to_rec.py aligned_faces/ dataset/mine

Writes train.rec, train.idx, `property` and identities.txt (label order: sorted folder names) in
insightface's layout, train.rec last, so that the same command can be given again where it was
killed. Every image has to be an aligned 112x112 face.
"""

import os
from pathlib import Path

import numpy as np

from bct.command import Parser, file_path, run_cli
from bct.data.images import SIZE
from bct.data.record_writer import RecordWriter, claim
from bct.data.recordio import Header
from bct.data.sets import FolderSet
from bct.errors import BctError
from bct.log import progress


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=file_path, help="one sub-folder per identity")
    parser.add_argument("out", type=file_path, help="folder for train.rec")
    args = parser.parse_args()
    pack(args.folder, args.out)


def pack(folder: Path, out: Path) -> None:
    """Packs a folder into out/train.rec. BctError if there is one, or for an image that is broken
    or not aligned."""
    if not folder.is_dir():
        raise BctError(f"there is no folder {folder}", "check the path")
    path = out / "train.rec"
    if os.path.lexists(path):
        raise BctError(f"{path} exists already", "move it away, or give another folder")
    dataset = FolderSet(folder)
    write_record_file(dataset, path)
    print(f"{path}: {len(dataset)} images, {dataset.num_classes} identities")


def write_record_file(dataset: FolderSet, path: Path) -> None:
    """Images have keys 1..n by identity, then one record per identity with its key range, then the
    header [n + 1, n + identities + 1] under key 0: the layout of insightface's builders."""
    images, scratch = len(dataset), np.empty((SIZE, SIZE, 3), np.uint8)
    beside = {
        "property": f"{dataset.num_classes},{SIZE},{SIZE}\n",
        "identities.txt": "\n".join(dataset.identities) + "\n",
    }
    claim(path, {path.with_name(name): text for name, text in beside.items()})
    with RecordWriter(path) as writer:
        for index in progress(range(images), path.stem, unit="img"):
            label = dataset.load(index, scratch)  # refuses a broken or unaligned image
            writer.write(index + 1, Header([label, 0], index + 1), dataset.payload(index)[0])
        ends = np.cumsum(np.bincount(dataset.labels, minlength=dataset.num_classes)) + 1
        for identity, end in enumerate(ends):
            key = images + 1 + identity
            start = ends[identity - 1] if identity else 1
            writer.write(key, Header([start, end], key), b"")
        writer.write(0, Header([images + 1, images + dataset.num_classes + 1]), b"")


if __name__ == "__main__":
    run_cli(main)
