"""An image set as a verification and search protocol, so that the report applies to it."""

from pathlib import Path

import numpy as np

from bct.data.sets import ImageSet
from bct.data.views import View, transform
from bct.errors import BctError
from tools.ijbc.protocol import Gallery, Protocol

_PAIRS = 1 << 24  # about as many as IJB-C has; of more, probes are left out evenly


class Thumbnails:
    """Images of a set, made square and small."""

    def __init__(self, dataset: ImageSet):
        self.dataset, self.shrink = dataset, transform(View(crop="resized"), train=False)

    def load(self, index: int, out: np.ndarray) -> None:
        out[:] = self.shrink(self.dataset.image(index))


def image_protocol(dataset: ImageSet) -> tuple[Protocol, list[Gallery], Gallery]:
    """Classes as subjects: the first half of a class's images, in the set's order, are its template
    in the gallery, each of the others is a probe.

    Pairs are all of a gallery template and a probe. Every second class is in the one gallery, the
    others in the other one, so a search has probes that belong to nobody. A class of a single image
    has a probe and nobody in the gallery.

    Raises:
        BctError: fewer than two classes of two images or more.
    """
    labels, n = dataset.labels, len(dataset)
    sizes = np.bincount(labels)
    classes = np.flatnonzero(sizes > 1)
    if len(classes) < 2:
        raise BctError(
            f"{dataset.path} has {len(classes)} classes of two images or more",
            "give a set with at least two, one image to enrol and one to search for",
        )
    order = np.argsort(labels, kind="stable")
    place = np.empty(n, np.int64)  # of an image within its class
    place[order] = np.arange(n) - (np.cumsum(sizes) - sizes)[labels[order]]
    enrolled = place < sizes[labels] // 2
    templates = np.where(enrolled, labels, len(sizes) + np.arange(n))
    probes = np.flatnonzero(~enrolled)
    probes = probes[:: -(-len(classes) * len(probes) // _PAIRS)]
    first, second = (a.ravel() for a in np.meshgrid(classes, templates[probes], indexing="ij"))
    protocol = Protocol(
        root=Path(dataset.path),
        subset=Path(dataset.path).stem,
        names=[dataset.describe(i) for i in range(n)],
        landmarks=np.zeros((n, 5, 2), np.float32),
        detector=np.ones(n, np.float32),
        templates=templates,
        medias=np.arange(n),
        first=first,
        second=second,
        genuine=np.repeat(classes, len(probes)) == np.tile(labels[probes], len(classes)),
    )
    protocol.fingerprint = dataset.fingerprint  # in place of that of IJB's files
    halves = (classes[::2], classes[1::2])
    galleries = [Gallery(f"gallery_{k}", half, half) for k, half in enumerate(halves, 1)]
    return protocol, galleries, Gallery("probes", templates[probes], labels[probes])
