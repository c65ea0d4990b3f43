"""GLDv2-clean's training set, which a csv describes."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from bct.data.image_files import ImageFiles, bad_line
from bct.errors import BctError
from bct.files import without_mark

_ID = re.compile(rb"[0-9A-Za-z_-]{3,64}")  # of an image
_HEADER = b"landmark_id,images"


def open_train_clean(path: Path) -> ImageFiles:
    """GLDv2's train_clean.csv: landmark_id,images, the latter ids with spaces between them.

    Image abc... is train/a/b/c/abc....jpg beside the csv. Labels follow the landmark ids in
    ascending order, which are the classes' names.

    Raises:
        BctError: another header, a line that does not parse, a landmark or an image that occurs
            twice, no image.
    """
    header, *lines = without_mark(path, path.read_bytes()).splitlines() or [b""]
    do = "copy the file again; a training set's csv is GLDv2's train_clean.csv"
    if header.strip() != _HEADER:
        raise bad_line(path, 1, header, _HEADER.decode(), do)
    images: dict[int, list[bytes]] = {}
    for number, line in enumerate(lines, 2):
        landmark, comma, ids = line.strip().partition(b",")
        if not landmark and not comma:
            continue
        found = ids.split()
        if (
            not re.fullmatch(rb"\d{1,18}", landmark)
            or not found
            or not all(map(_ID.fullmatch, found))
        ):
            raise bad_line(path, number, line, "<landmark_id>,<image> <image> ...", do)
        if int(landmark) in images:
            raise bad_line(path, number, line, "of a landmark of its own: it occurs twice", do)
        images[int(landmark)] = found
    if not images:
        raise BctError(f"{path} names no image", do)
    landmarks = sorted(images)
    every = [i for landmark in landmarks for i in images[landmark]]
    twice = [one for one, other in pairwise(sorted(every)) if one == other]
    if twice:
        raise BctError(f"{path} names the image {twice[0].decode()} twice", do)
    names = [b"train/%c/%c/%c/%s.jpg" % (*i[:3], i) for i in every]
    labels = np.repeat(np.arange(len(landmarks)), [len(images[i]) for i in landmarks])
    return ImageFiles(path, path.resolve().parent, names, labels, [str(i) for i in landmarks])
