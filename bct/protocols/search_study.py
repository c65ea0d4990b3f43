"""A whole study of searches on an image set: every test, every figure, and the page about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bct.files import atomic
from bct.models.model import Model
from bct.protocols.image_search import sets_of
from bct.protocols.protocol import Protocol
from bct.protocols.search_backfill import backfills
from bct.protocols.search_tables import heading, tables
from bct.protocols.search_tests import (
    NEW,
    OLD,
    How,
    Roles,
    Sides,
    measured,
    parts_of,
    run_tests,
    sides_of,
)


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
        sides[roles.mapped] = Sides(gallery[:0], gallery)
    relevance = protocol.search.relevance
    parts = parts_of(relevance, wanted.old)
    results, left_out = run_tests(relevance, sides, roles, how)
    labels = protocol.subjects[protocol.search.queries]
    names = protocol.images.class_names
    found = measured(results, roles, how, parts, labels, wanted.resamples, names, wanted.per_class)
    remarks = []
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


def save_embeddings(
    target: Path, protocol: Protocol, models: Mapping[str, Model], embeddings: Mapping
) -> None:
    """<target>_<label>.npy; with two sets <target>_<label>_queries.npy and _gallery.npy."""
    ends = ("_queries", "_gallery") if len(sets_of(protocol)) == 2 else ("",)
    for label, rows in embeddings.items():
        if models[label].view is None:
            continue
        for end, array in zip(ends, sides_of(protocol.search, rows), strict=False):
            path = target.with_name(f"{target.name}_{label}{end}.npy")
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.save(file, array)
