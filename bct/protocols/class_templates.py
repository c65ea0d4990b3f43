"""An image set as a protocol: half of each class is enrolled, the other half asks."""

import numpy as np

from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.protocols.protocol import Pairs, Protocol, Side
from bct.protocols.templates import Templates
from bct.protocols.thumbnails import thumbnails_of

_PAIRS = 1 << 24  # about as many as IJB-C has; of more, probes are left out evenly


def class_templates(dataset: ImageSet) -> Protocol:
    """Classes as subjects: the first half of a class's images, in the set's order, are its template
    in the gallery, each of the others is a probe.

    Pairs are all of a gallery template and a probe. Every second class is in the one gallery, the
    others in the other one, so a search has probes that belong to nobody; with three classes or
    fewer a gallery would have one template, which nobody can mistake, so there is no search. A
    class of a single image has a probe and nobody in the gallery.

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
    templates = Templates(np.where(enrolled, labels, len(sizes) + np.arange(n)))
    subjects = np.empty(len(templates.ids), np.int64)
    subjects[templates.row] = labels
    probes = np.flatnonzero(~enrolled)
    probes = probes[:: -(-len(classes) * len(probes) // _PAIRS)]
    gallery, probe = templates.rows(classes), templates.row[probes]
    first, second = (a.ravel() for a in np.meshgrid(gallery, probe, indexing="ij"))
    halves = (slice(0, None, 2), slice(1, None, 2)) if len(classes) > 3 else ()
    few = f"No 1:N figures: {len(classes)} classes are too few to search for somebody."
    return Protocol(
        name=dataset.name,
        images=dataset,
        templates=templates,
        pairs=Pairs(first, second, subjects[first] == subjects[second]),
        probes=Side("probes", probe, labels[probes]) if halves else None,
        galleries=[
            Side(f"gallery_{k}", gallery[half], classes[half]) for k, half in enumerate(halves, 1)
        ],
        subjects=subjects,
        thumbnail=thumbnails_of(dataset),
        remarks=[] if halves else [few],
    )
