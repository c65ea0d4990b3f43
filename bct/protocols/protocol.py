"""What is evaluated: images, the items that are made of them, and who is compared with whom.

An item is what a gallery holds and a query asks with: a template of several images, or an image
itself. Pairs, probes, galleries and searches speak of items by their row, 0..T-1.

    tools/ijbc/protocol.py               IJB-B and IJB-C
    bct/protocols/pairs.py               verification sets in insightface's .bin format
    bct/protocols/class_templates.py     an image set, half of each class enrolled
    bct/protocols/image_search.py        an image set searched, by class
    bct/protocols/revisited.py           Revisited Oxford and Paris
    bct/protocols/gldv2.py               Google Landmarks v2
    bct/protocols/market.py              Market-1501

A new protocol is one file whose reader returns a Protocol.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.metrics.relevance import Relevance
from bct.protocols.templates import Templates
from bct.rows import check_rows, unit_rows


class Pairs(NamedTuple):
    """1:1. first, second int64 (P,): the enrolled and the probe item; genuine bool (P,)."""

    first: np.ndarray
    second: np.ndarray
    genuine: np.ndarray


class Side(NamedTuple):
    """One side of 1:N. rows int64 (K,): its items; subjects int64 (K,): whose they are."""

    name: str
    rows: np.ndarray
    subjects: np.ndarray


class Search(NamedTuple):
    """Retrieval. queries, gallery int64 (Q,), (G,): items; relevance: of the gallery to a query.

    precision: how the protocol reckons an average precision, see bct/metrics/average_precision.py:
    "steps", "trapezoid" (Revisited Oxford and Paris) or "first100" (GLDv2).
    readings: where a protocol has several, their relevances by name, e.g. medium, easy and hard;
    `relevance` is the first of them, by which verdicts are given.
    """

    queries: np.ndarray
    gallery: np.ndarray
    relevance: Relevance
    precision: str = "steps"
    readings: Mapping[str, Relevance] = MappingProxyType({})

    @property
    def by_reading(self) -> Mapping[str, Relevance]:
        """All readings, the one that decides first; its name is "" where it is the only one."""
        return self.readings or {"": self.relevance}


@dataclass(eq=False)  # two are the same if they are one: it can be a key
class Protocol:
    """A test. It has pairs, or probes and galleries, or a search, or several of these.

    Attributes:
        name: short, for tables and files.
        images: the N images to embed, an image set.
        templates: how images become items; None: image i is item i.
        pairs: 1:1.
        probes, galleries: 1:N, open-set; a gallery holds one item of a subject.
        search: retrieval.
        subjects: int64 (T,), whose item it is, where that is known: what intervals are over.
        unit: what subjects are, in the plural: what intervals of a search are over.
        thumbnail: (image, out uint8 (112, 112, 3)) fills in a small picture.
        remarks: what was left out of it and why, a sentence each, for whoever reads its figures.
    """

    name: str
    images: ImageSet
    templates: Templates | None = None
    pairs: Pairs | None = None
    probes: Side | None = None
    galleries: list[Side] = field(default_factory=list)
    search: Search | None = None
    subjects: np.ndarray | None = None
    unit: str = "classes"
    thumbnail: Callable[[int, np.ndarray], None] | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Of the images."""
        return self.images.fingerprint

    @property
    def items(self) -> int:
        """T."""
        return len(self.images) if self.templates is None else len(self.templates.ids)

    def item_id(self, row: int) -> int:
        """The number by which the protocol's files call an item."""
        return int(row) if self.templates is None else int(self.templates.ids[row])

    def first_image(self, item_id: int) -> int:
        """The first image of an item, by its number in the protocol's files."""
        if self.templates is None:
            return item_id
        (row,) = self.templates.rows(np.array([item_id]))
        return int(np.flatnonzero(self.templates.row == row)[0])

    def item_features(self, embeddings: np.ndarray) -> np.ndarray:
        """Unit embeddings of the items, float32 (T, D), from those of the images (N, D).

        Raises BctError when the number of embeddings is not the number of images, and like
        bct.rows.check_rows.
        """
        if len(embeddings) == len(self.images):
            check_rows(embeddings, describe=lambda row: self.images.describe(row))
        if self.templates is not None:
            return self.templates.aggregate(embeddings)
        if len(embeddings) != len(self.images):
            raise BctError(
                f"there are {len(embeddings)} embeddings for {len(self.images)} images",
                "compute the embeddings for this protocol",
            )
        return unit_rows(embeddings)


def fingerprint_of(protocol: Protocol) -> str:
    """SHA-256 of what is asked of the images: their templates, pairs, probes, galleries, search."""
    found = hashlib.sha256(protocol.name.encode(errors="surrogateescape"))

    def add(value: object) -> None:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype} {value.shape}".encode())
            found.update(np.ascontiguousarray(value))
        elif isinstance(value, Mapping):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            found.update(f"{len(value)}".encode())
            for part in value:
                add(part)
        else:
            found.update(repr(value).encode())

    layout = protocol.templates
    add(None if layout is None else (layout.ids, layout.row, layout.medium, layout.weight))
    add((protocol.pairs, protocol.probes, protocol.galleries, protocol.search))
    return found.hexdigest()
