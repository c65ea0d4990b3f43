"""Training sets that say in their own way who is on which image: GLDv2-clean and Market-1501."""

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from bct.data.image_files import ImageFiles, bad_line, entries
from bct.data.market_names import JUNK, parse
from bct.distributed import say
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


def open_market(folder: Path) -> ImageFiles:
    """Market-1501's bounding_box_train: who is on an image is in its name.

    Labels follow the numbers of the people in ascending order, which are the classes' names. Junk,
    -1, is left out.

    Raises:
        BctError: an image whose name is not Market's, or none that shows anybody.
    """
    images, _, others = entries(os.fsencode(folder))
    people = np.array([parse(name)[0] for name in images], np.int64)
    names = [name for name, who in zip(images, people.tolist(), strict=True) if who != JUNK]
    if not names:
        raise BctError(
            f"{folder} holds no image of a person",
            "copy Market-1501's training images into it: <person>_c<camera>s<sequence>_....jpg",
        )
    for count, what in ((len(images) - len(names), "junk, -1,"), (len(others), "no image")):
        if count:
            say(f"{folder}: {count} files are {what} and are left out")
    numbers, labels = np.unique(people[people != JUNK], return_inverse=True)
    return ImageFiles(folder, folder, names, labels, [f"{number:04d}" for number in numbers])
