"""Images to embed, each with a name: sets, folders with or without classes, single files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.data.cifar import Cifar
from bct.data.image_files import IMAGE_SUFFIXES, FolderSet, ImageFiles, as_text, entries
from bct.data.image_set import ImageSet, Joined
from bct.data.sets import RecordSet, open_known
from bct.distributed import say
from bct.errors import BctError


class Source(NamedTuple):
    """Images, whether their labels mean anything, and what an image is called, as bytes."""

    images: ImageSet
    labelled: bool
    name: Callable[[int], bytes]


def open_sources(
    paths: Sequence[Path], opened: Callable[[Path], ImageSet | None], lacking: bool = False
) -> Source:
    """All images of some paths, in their order.

    A folder is opened as open_images does; where it would be a folder of classes and does not hold
    all its images so, at any depth, they have no labels. Files that are images by their suffix are
    called as they are given; images of a single set as the set calls them: relative to its root,
    by their keys or numbers. With several paths these names follow the path, and labels, which
    would be of several sets, are none.

    Args:
        opened: opens paths of further kinds; None for those that it does not know.
        lacking: files of a folder or list may be missing; loading such an image raises BctError.

    Raises BctError for a path that is neither, and what the sets raise.
    """
    parts: list[tuple[Source, bytes]] = []
    files: list[Path] = []

    def close() -> None:
        if files:
            parts.append((_of_files(list(files)), b""))
            files.clear()

    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            files.append(path)
            continue
        close()
        images = opened(path)
        found = _open_set(path) if images is None else Source(images, False, _numbered)
        parts.append((found, os.fsencode(path)))
    close()
    for source, _ in parts:
        source.images.lacking = lacking
    if len(parts) == 1:
        return parts[0][0]
    joined = Joined([source.images for source, _ in parts])
    joined.resizable = all(source.images.resizable for source, _ in parts)

    def name(index: int) -> bytes:
        part = int(np.searchsorted(joined.starts, index, side="right")) - 1
        source, prefix = parts[part]
        return os.path.join(prefix, source.name(index - int(joined.starts[part])))

    return Source(joined, False, name)


def _numbered(index: int) -> bytes:
    return b"%d" % index


def _open_set(path: Path) -> Source:
    images = open_known(path)
    if images is None and path.is_dir():
        return _open_folder(path)
    if images is None:
        raise BctError(
            f"there are no images at {path}",
            "give a folder, an image file, a list, a .rec file, or a set such as CIFAR",
        )
    if isinstance(images, RecordSet):
        return Source(images, True, lambda index: b"%d" % images.keys[index])
    return _named(images, True)


def _named(images: ImageFiles | Cifar, labelled: bool) -> Source:
    return Source(images, labelled, lambda index: bytes(images.names[index]))


def _open_folder(path: Path) -> Source:
    """A folder of class folders if all its images are in such, else all images in it."""
    names, others = _below(os.fsencode(path))
    if not names:
        raise BctError(
            f"{path} holds no image, at any depth",
            f"images are {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    try:
        classes = FolderSet(path, quiet=True)
    except BctError:  # no class folders
        classes = None
    if classes is not None and len(classes) == len(names):
        images, labelled = classes, True
    else:
        images, labelled = _unlabelled(path, path, names), False
        if classes is not None:
            say(f"{path}: its images are not all in class folders, so they get no labels")
    if others:
        say(
            f"{path}: {len(others)} files are no images by their suffix and are left out, e.g. "
            f"{as_text(others[0])!r}"
        )
    return _named(images, labelled)


def _of_files(files: list[Path]) -> Source:
    for file in files:
        if not file.is_file():
            raise BctError(f"there is no image {file}", "check the path")
    what = files[0] if len(files) == 1 else Path(f"{len(files)} image files")
    return _named(_unlabelled(what, Path(), [os.fsencode(file) for file in files]), False)


def _unlabelled(path: Path, root: Path, names: list[bytes]) -> ImageFiles:
    return ImageFiles(path, root, names, np.zeros(len(names), np.int64), None, 1)


def images_below(folder: Path) -> list[bytes]:
    """Sorted names of all images below a folder, at any depth, relative to it."""
    return _below(os.fsencode(folder))[0]


def _below(root: bytes) -> tuple[list[bytes], list[bytes]]:
    """Sorted images and other files below a folder, at any depth, relative to it.

    Hidden folders are left out. Links to folders are followed, but not into a folder that they are
    themselves in.
    """
    images, others = [], []
    todo: list[tuple[bytes, tuple]] = [(b"", ())]
    while todo:
        below, above = todo.pop()
        about = os.stat(os.path.join(root, below))
        here = (about.st_dev, about.st_ino)
        if here in above:
            continue
        found, folders, rest = entries(root, below)
        images += found
        others += rest
        todo += [(folder, (*above, here)) for folder in folders]
    return sorted(images), sorted(others)
