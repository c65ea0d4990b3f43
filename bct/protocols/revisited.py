"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018), and sets annotated in the same way.

A gallery image is easy, hard or junk for a query, or negative. There are three readings:

    medium  positive: easy and hard     ignored: junk
    easy    positive: easy              ignored: junk and hard
    hard    positive: hard              ignored: junk and easy

An average precision is the area under the curve by trapezoids, see
bct/metrics/average_precision.py. In the standard protocol a query is what lies in its box; AdvBCT
and OpenCompatible have published figures of whole queries.
"""

from pathlib import Path

import numpy as np

from bct.data.cropped import Cropped
from bct.data.gnd_files import Gnd, find_gnd, find_images, read_gnd
from bct.data.image_files import IMAGE_SUFFIXES, as_text
from bct.data.image_set import ImageSet, Joined
from bct.data.listed_images import ListedImages
from bct.data.sources import images_below
from bct.errors import BctError
from bct.files import without_mark
from bct.metrics.relevance import ByItem, Rows
from bct.protocols.listed import landmarks, listed_protocol, merged, restricted
from bct.protocols.protocol import Protocol

READINGS = {  # name: the grades that are positive, those that are ignored
    "medium": (("easy", "hard"), ("junk",)),
    "easy": (("easy",), ("junk", "hard")),
    "hard": (("hard",), ("junk", "easy")),
}


def open_revisited(
    root: str | Path,
    name: str = "",
    standard: bool = False,
    distractors: str | Path | None = None,
    stored: bool = False,
    lacking: bool = False,
) -> Protocol:
    """Opens gnd_<name>.pkl and the images beside it, see bct/data/gnd_files.py.

    Args:
        root: the folder of a set or of several; or the ground truth file itself.
        name: roxford5k, rparis6k, or that of any other ground truth, or its path.
        standard: queries are cropped by their boxes.
        distractors: further images of the gallery, which no query looks for (R1M): a folder of
            images, at any depth, or a list with a name on each line, of files in jpg/ beside it or
            beside it.
        stored: descriptors are there in place of a network: no image is looked for.
        lacking: images may be missing; they and their queries are left out, and remarks say so.

    Raises BctError: no such files; what read_gnd refuses; missing images.
    """
    path = find_gnd(root, name)
    gnd = read_gnd(path)
    if standard and gnd.boxes is None:
        raise BctError(
            f"{path} has no boxes (bbx), by which the standard protocol crops queries",
            "give the published file, or evaluate whole queries",
        )
    folder = None if stored else find_images(root, path, name, gnd.gallery[0])
    queries = ListedImages(path, folder, gnd.queries, lacking=lacking)
    found = ListedImages(path, folder, gnd.gallery, lacking=lacking)
    remarks = [images.remark for images in (queries, found) if images.remark]
    readings = {
        reading: ByItem(*(_graded(gnd, grades, queries.rows, found.rows) for grades in sides))
        for reading, sides in READINGS.items()
    }
    subjects, gallery = landmarks(readings["medium"], len(found)), found
    title = path.stem.removeprefix("gnd_")
    if distractors is not None:
        more = open_distractors(distractors, stored, lacking)
        more.labels = np.full(len(more), -1)
        found.labels, gallery = subjects[1], Joined([found, more])
        remarks += [f"{len(more):,} further images, {more.name}, are in the gallery."]
        remarks += [more.remark] if more.remark else []
        subjects, title = (subjects[0], gallery.labels), f"{title}_{more.name}"
        gallery.path = Path(f"{path.stem}+{more.name}")
    asked: ImageSet = Cropped(queries, gnd.boxes[queries.rows]) if standard else queries
    return listed_protocol(
        title, path, asked, gallery, readings, "trapezoid", subjects, remarks
    )  # fmt: skip


def _graded(gnd: Gnd, grades: tuple[str, ...], queries: np.ndarray, gallery: np.ndarray) -> Rows:
    rows = merged(*(gnd.graded[grade] for grade in grades))
    return restricted(rows, queries, gallery, len(gnd.gallery))


def open_distractors(path: str | Path, stored: bool = False, lacking: bool = False) -> ListedImages:
    """Images that no query looks for, see open_revisited.

    Raises BctError: no such folder or list, or one without a name; missing images.
    """
    path = Path(path)
    published = path / f"{path.name}.txt"
    if published.is_file():
        path = published
    if path.is_dir():
        below = path / "jpg" if (path / "jpg").is_dir() else path
        names = images_below(below)
        if not names:
            raise BctError(f"{path} holds no image, at any depth", "give the folder of distractors")
        return ListedImages(path, below, names)
    if not path.is_file():
        raise BctError(f"there are no distractors {path}", "give a folder of images, or a list")
    names = _names_in(path)
    folder = next(
        (path.parent / sub for sub in ("jpg", ".") if _holds(path.parent / sub, names)), None
    )
    return ListedImages(path, None if stored else folder, names, lacking=lacking)


def _holds(folder: Path, names: list[bytes]) -> bool:
    """Whether a folder is that of the images: a list's first ones may be missing."""
    return (folder.name == "jpg" and folder.is_dir()) or (folder / as_text(names[0])).is_file()


def _names_in(path: Path) -> list[bytes]:
    lines = without_mark(path, path.read_bytes()).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise BctError(f"{path} names no image", "give a list with a name on each line")
    ends = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)
    names = [name if name.lower().endswith(ends) else name + b".jpg" for name in names]
    if len(set(names)) < len(names):
        raise BctError(f"{path} names an image twice", "name each once")
    return names
