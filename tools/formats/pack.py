"""A folder of identity folders as a record file, see tools/folder_to_rec.py."""

import os
from pathlib import Path

import numpy as np

from bct.data.images import SIZE
from bct.data.record_writer import RecordWriter, claim
from bct.data.recordio import Header
from bct.data.sets import FolderSet
from bct.errors import BctError
from bct.log import progress


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
