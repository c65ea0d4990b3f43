"""Market-1501 (Zheng et al., ICCV 2015): a person among the pictures of other cameras.

Positive are pictures of the same person by other cameras; those by the query's own camera are
ignored. People that nobody looks for (0000) stay in the gallery, boxes of nobody (-1) do not.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bct.data.image_files import as_text
from bct.data.listed_images import ListedImages
from bct.data.market_files import JUNK, NOBODY, People, read_people
from bct.metrics.relevance import ByClass, Rows
from bct.protocols.listed import listed_protocol
from bct.protocols.protocol import Protocol


def open_market(root: str | Path, stored: bool = False, lacking: bool = False) -> Protocol:
    """Opens a set with query/ and bounding_box_test/, or with lists of them, see
    bct/data/market_files.py.

    Args:
        stored: descriptors are there in place of a network: no image is looked for. Those of the
            gallery are of all its pictures, or of all but the boxes of nobody.
        lacking: images may be missing; they are left out, and remarks say so.

    Raises BctError: what read_people refuses; missing images.
    """
    root = Path(root)
    asked, searched = (read_people(root, part) for part in ("query", "test"))
    queries = _images(root, asked, asked.people > NOBODY, stored, lacking)
    gallery = _images(root, searched, searched.people > JUNK, stored, lacking)
    people = asked.people[queries.rows], searched.people[gallery.rows]
    cameras = asked.cameras[queries.rows], searched.cameras[gallery.rows]
    counts = (
        (np.count_nonzero(asked.people <= NOBODY), "queries show nobody (0000, -1): left out."),
        (np.count_nonzero(searched.people == JUNK), "boxes of the gallery (-1) are left out."),
        (np.count_nonzero(people[1] == NOBODY), "of the gallery (0000) are looked for by nobody."),
    )
    remarks = [f"{number:,} {what}" for number, what in counts if number]
    remarks += [images.remark for images in (queries, gallery) if images.remark]
    known = np.unique(np.concatenate(people))
    known = known[known > NOBODY]
    labels = [np.where(side > NOBODY, np.searchsorted(known, side), -1) for side in people]
    relevance = ByClass(*labels, ignored=same_camera(labels, cameras))
    protocol = listed_protocol(
        "market1501", asked.path, queries, gallery, {"all": relevance}, "steps", labels, remarks
    )  # fmt: skip
    protocol.images.class_names = [f"{person:04d}" for person in known.tolist()]
    protocol.unit = "persons"
    return protocol


def _images(
    root: Path, said: People, meant: np.ndarray, stored: bool, lacking: bool
) -> ListedImages:
    first = root / as_text(said.names[0])
    there = first.is_file() or (first.parent != root and first.parent.is_dir())
    folder = root if there and not stored else None
    return ListedImages(said.path, folder, said.names, np.flatnonzero(meant), lacking)


def same_camera(people: Sequence[np.ndarray], cameras: Sequence[np.ndarray]) -> Rows:
    """For each query the gallery's rows of its person by its own camera.

    Args:
        people, cameras: int64 (Q,), (G,), of queries and gallery.
    """
    most = max(int(side.max(initial=0)) for side in cameras) + 1
    asked, searched = (who * most + where for who, where in zip(people, cameras, strict=True))
    order = np.argsort(searched, kind="stable")
    start, stop = (np.searchsorted(searched[order], asked, side) for side in ("left", "right"))
    return Rows.of_lists([order[a:b] for a, b in zip(start, stop, strict=True)])
