"""A whole study of searches on an image set: every test, every figure, and the page about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.command import Parser, pixels_option, positive, some_text, takes
from bct.data import views
from bct.keys import image_size
from bct.metrics.retrieval import METRICS, Retrieval
from bct.models.model import Model
from bct.models.widths import POLICIES
from bct.outputs import short_name
from bct.protocols.evidence import few
from bct.protocols.image_search import sets_of
from bct.protocols.overlap import equal_vectors
from bct.protocols.protocol import Protocol
from bct.protocols.roles import Roles, Test
from bct.protocols.search_backfill import backfills
from bct.protocols.search_tables import heading, tables
from bct.protocols.search_tests import (
    NEW,
    OLD,
    How,
    Sides,
    measured,
    parts_of,
    run_tests,
    sides_of,
)
from bct.rows import check_rows, zeros_remark
from bct.stored.vector_files import save_rows


class Wanted(NamedTuple):
    """What is asked for.

    old: bool (C,), which classes the old model was trained on, None if that is not known. orders:
    of backfills, name -> a number per gallery item (G,), the highest first, or None for a name of
    search_backfill.ORDERS. resamples: of the bootstrap. per_class: figures of each class, too.
    """

    old: np.ndarray | None = None
    orders: Mapping[str, np.ndarray | None] = {}
    resamples: int = 1000
    per_class: bool = False


def search_options(parser: Parser) -> None:
    """Adds how images are seen, how searches are made and what is asked: see View, How, Wanted."""
    add = parser.add_argument
    pixels = takes(image_size(None))
    known = "the first N labels, or a .json with class names; default: the old model.json"
    add("--old-classes", type=some_text, metavar="N", help=known)
    add("--metric", choices=METRICS, default="cosine")
    widths = "how two widths meet: leading dimensions of the wider, or the narrower with zeros"
    add("--dimensions", choices=POLICIES, default="equal", help=widths)
    add("--ks", type=positive, nargs="+", default=[1, 5], help="which top-k")
    orders = "quality by share of the gallery refreshed: random, distance (from the class's centre)"
    orders += ", or an .npy of uncertainties, the highest of which come first"
    add("--backfill", type=some_text, nargs="+", default=[], metavar="ORDER", help=orders)
    add("--per-class", action="store_true", help="figures of each class, too, in the .json")
    add("--resamples", type=positive, default=1000, help="of the bootstrap over classes")
    add("--size", type=pixels, help="pixels of the input, where no model.json says; default: 112")
    add("--crop", choices=views.CROPS, help="likewise; resized: the centre of 256/224 of it")
    pixels_option(parser)


def made_from(protocol: Protocol, models: Mapping[str, Model], how: How) -> dict:
    """What results depend on, as plain values: models, images and how they are compared."""
    return {
        "models": {
            label: {"sha256": model.sha256, "view": model.view and model.view.entries}
            for label, model in models.items()
        },
        "data": [images.fingerprint for images in sets_of(protocol)],
        "metric": how.metric,
        "dimensions": how.dimensions,
    }


def study(
    protocol: Protocol,
    models: Mapping[str, Model],
    embeddings: Mapping[str, np.ndarray],
    roles: Roles,
    how: How,
    wanted: Wanted,
) -> tuple[dict, list[str], list[str]]:
    """Runs all tests.

    Args:
        models: by label; embeddings: their (N, D), but for the mapped gallery, which is opened.

    Returns:
        The figures as plain values, the heading and tables, and remarks.
    """
    sides, once = {}, {}
    for label, rows in embeddings.items():  # of a model that is given twice nothing may differ
        key = models[label].sha256, models[label].view
        sides[label] = once.setdefault(key, sides_of(protocol.search, rows))
    if roles.mapped is not None:
        gallery = models[roles.mapped].rows(sets_of(protocol)[-1])
        zeros = check_rows(gallery, models[roles.mapped].file)
        if len(zeros):
            protocol.remarks.append(zeros_remark(models[roles.mapped].file, zeros, len(gallery)))
        sides[roles.mapped] = Sides(gallery[:0], gallery)
    relevance = protocol.search.relevance
    parts = parts_of(relevance, wanted.old)
    results, left_out = run_tests(relevance, sides, roles, how)
    labels = protocol.subjects[protocol.search.queries]
    names = protocol.images.class_names
    found = measured(results, roles, how, parts, labels, wanted.resamples, names, wanted.per_class)
    remarks = [*protocol.remarks, *_unopposed(results)]
    if too_few := few(protocol):
        remarks.append(f"{too_few} only: the figures mean nothing.")
    found_twice = [
        equal_vectors(label, *both, relevance)
        for label, both in sides.items()
        if label != roles.mapped
    ]
    remarks += filter(None, found_twice)
    if wanted.old is not None:
        remarks += [f"There are no {part}." for part in (OLD, NEW) if part not in parts]
    if wanted.orders:
        found["backfill"] = backfills(relevance, sides, roles, wanted.orders, results, how)
        widths = {sides[label].gallery.shape[1] for label in (roles.stale, *roles.new)}
        if len(widths) > 1:
            remarks.append("A mixed gallery has one width: 100 % is new / new in that width.")
    widths = {label: sides[label].gallery.shape[1] for label in models}
    text = [heading(protocol, how, models, widths), *tables(found, roles, how, parts)]
    return found, text, remarks + left_out


def _unopposed(results: Mapping[Test, Retrieval]) -> list[str]:
    free = next(iter(results.values())).unopposed
    if not free:
        return []
    return [f"{free:,} queries are left out: all that they could find is of their own class."]


def embedding_files(
    target: Path, protocol: Protocol, models: Mapping[str, Model]
) -> dict[str, list[Path]]:
    """Label -> <target>_<label>.npy, with two sets <target>_<label>_queries.npy and _gallery.npy.
    Stored embeddings have none."""
    ends = ("_queries", "_gallery") if len(sets_of(protocol)) == 2 else ("",)
    return {
        label: [
            target.with_name(f"{short_name(f'{target.name}_{label}')}{end}.npy") for end in ends
        ]
        for label, model in models.items()
        if model.view is not None
    }


def save_embeddings(
    files: Mapping[str, list[Path]], protocol: Protocol, embeddings: Mapping[str, np.ndarray]
) -> None:
    """Args: files: see embedding_files. embeddings: label -> (N, D)."""
    for label, paths in files.items():
        for path, array in zip(paths, sides_of(protocol.search, embeddings[label]), strict=False):
            save_rows(path, array)
