"""An image set searched by class: queries in a gallery, or each image among all the others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bct.data.image_set import ImageSet, Joined
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import read_json
from bct.metrics.relevance import ByClass, Rows
from bct.protocols.overlap import shared_images, twins
from bct.protocols.protocol import Protocol, Search
from bct.protocols.thumbnails import thumbnails_of


def open_search(queries: str | Path, gallery: str | Path | None = None) -> Protocol:
    """Opens the sets. If both name their classes, equal names are equal classes, whatever their
    labels; if neither does, equal labels are.

    Returns:
        A Protocol with a search by class; its subjects are the classes, its images have their
        names. Without a gallery each image is searched among all the others. A query's own image,
        if the gallery has it, too, is left out of its ranking, and remarks say how many there are.

    Raises BctError: no such set; one with and one without names; two that are the same images.
    """
    sets = [open_images(path) for path in (queries, gallery) if path is not None]
    name = "_in_".join(Path(images.path).resolve().stem for images in sets)
    if len(sets) == 1:
        labels, rows = sets[0].labels, np.arange(len(sets[0]))
        search = Search(rows, rows, ByClass(labels, labels, leave_one_out=True))
        return _protocol(name, sets[0], search, _twins(sets[0]))
    images = Joined(sets)
    images.labels, images.class_names = _common_labels(*sets)
    first, second = np.split(np.arange(len(images)), [len(sets[0])])
    own, remarks = _own_images(*sets)
    relevance = ByClass(images.labels[first], images.labels[second], ignored=own)
    return _protocol(name, images, Search(first, second, relevance), remarks)


def _twins(images: ImageSet) -> list[str]:
    """A remark on images that are there twice. They stay: published sets have some, too."""
    number, first = twins(images)
    if first is None:
        return []
    return [
        f"{number:,} of {len(images):,} images are the same as another one of the set, which is "
        f"easily found: {images.describe(first[0])} is {images.describe(first[1])}."
    ]


def _own_images(queries: ImageSet, gallery: ImageSet) -> tuple[Rows | None, list[str]]:
    """The gallery rows that are a query's own image, None if there are none, and a remark."""
    same = queries.fingerprint == gallery.fingerprint
    own = None if same else shared_images(queries, gallery)
    if same or (own.counts().all() and len(np.unique(own.rows)) == len(gallery)):
        raise BctError(
            f"the gallery {gallery.path} has the very images of the queries: each finds itself",
            "search each among all the others instead: --leave-one-out, without a gallery",
        )
    shared = np.flatnonzero(own.counts())
    if not len(shared):
        return None, []
    return own, [
        f"{len(shared):,} of {len(queries):,} queries are in the gallery, too, and are left out of "
        f"their own rankings there: {queries.describe(int(shared[0]))} is "
        f"{gallery.describe(int(own.of(shared[:1]).rows[0]))}."
    ]


def _protocol(name: str, images: ImageSet, search: Search, remarks: Sequence[str] = ()) -> Protocol:
    return Protocol(
        name,
        images,
        search=search,
        subjects=images.labels,
        thumbnail=thumbnails_of(images),
        remarks=list(remarks),
    )


def _common_labels(*sets: ImageSet) -> tuple[np.ndarray, list[str] | None]:
    """The labels of all sets' images, one set behind the other, and the classes' names."""
    names = [images.class_names for images in sets]
    labels = [images.labels for images in sets]
    if len({known is None for known in names}) > 1:
        first, second = (images.path for images in sets)
        raise BctError(
            f"of {first} and {second} one names its classes, the other one does not",
            "give two sets with class names, or two without whose labels mean the same",
        )
    if names[0] is None:
        return np.concatenate(labels), None
    every = {name: k for k, name in enumerate(dict.fromkeys([*names[0], *names[1]]))}
    labels = [
        np.array([every[name] for name in known], np.int64)[own]
        for known, own in zip(names, labels, strict=True)
    ]
    return np.concatenate(labels), list(every)


def sets_of(protocol: Protocol) -> list[ImageSet]:
    """The queries' set and the gallery's; a single one where each image is both."""
    images = protocol.images
    return images.sets if isinstance(images, Joined) else [images]


def class_names(path: str | Path) -> list[str] | None:
    """Names in a model.json, or a JSON list of them; None if it has none or does not exist.

    Raises BctError for anything else.
    """
    if not Path(path).is_file():
        return None
    said = read_json(path)
    names = said.get("class_names") if isinstance(said, dict) else said
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise BctError(f"{path} has no list of class names", "give a model.json or a JSON list")
    return names


def old_classes(
    protocol: Protocol, said: str | None, oldest: str | None
) -> tuple[np.ndarray | None, list[str]]:
    """Which classes the old model was trained on, bool (C,); or None, and why that is not known.

    Args:
        said: the user's word: a number of labels, or a file of class names; None: what stands
            beside the old model.
        oldest: file of the old model, if there is one.

    Raises BctError: a file that names no classes, or names for data that has none.
    """
    if not said and not oldest:
        return None, []
    if said and said.isdecimal():
        return np.arange(protocol.subjects.max() + 1) < int(said), []
    names = protocol.images.class_names
    source = said or Path(oldest).with_suffix(".json")
    known = class_names(source)
    if known is not None and names is not None:
        return np.isin(names, known), []
    lacking = source if known is None else sets_of(protocol)[0].path
    if said:
        raise BctError(f"--old-classes: {lacking} has no class names", "give a number of labels")
    return None, [f"Old and new classes are not told apart: {lacking} has no class names."]
