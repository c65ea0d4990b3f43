"""A whole study of searches on image sets: every test, every figure, and the page about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bct.metrics.relevance import ByItem
from bct.metrics.retrieval import Retrieval
from bct.metrics.whitening import Whitening, whitened
from bct.models.model import Model, rows_of
from bct.models.whole_images import Whole
from bct.outputs import short_name
from bct.protocols.evidence import few
from bct.protocols.image_search import sets_of
from bct.protocols.overlap import equal_vectors
from bct.protocols.protocol import Protocol, fingerprint_of
from bct.protocols.roles import Roles
from bct.protocols.search_backfill import Order, backfills
from bct.protocols.search_tables import heading, tables
from bct.protocols.search_tests import (
    NEW,
    OLD,
    How,
    Sides,
    main_of,
    measured,
    parts_of,
    query_units,
    run_tests,
    sides_of,
)
from bct.rows import check_rows, zeros_remark
from bct.stored.vector_files import save_rows


class Wanted(NamedTuple):
    """What is asked for.

    old: bool (C,), which classes the old model was trained on, None if that is not known. orders:
    of backfills, by name, see search_backfill.read_orders. resamples: of the bootstrap. per_class:
    figures of each class, too. whiten: label -> what its embeddings go through before they are
    compared. whole: how networks have seen images, None: as their views say.
    """

    old: np.ndarray | None = None
    orders: Mapping[str, Order] = {}
    resamples: int = 1000
    per_class: bool = False
    whiten: Mapping[str, Whitening] = {}
    whole: Whole | None = None


def made_from(
    protocol: Protocol, models: Mapping[str, Model], how: How, whole: Whole | None = None
) -> dict[str, Any]:
    """What results depend on, as plain values: models, images and how they are compared."""
    readings = protocol.search.readings
    listed = isinstance(protocol.search.relevance, ByItem)  # else labels say it, or names
    return {
        "models": {
            label: {"sha256": model.sha256, "view": model.view and model.view.entries}
            for label, model in models.items()
        },
        "data": [images.fingerprint for images in sets_of(protocol)],
        **({"asked": fingerprint_of(protocol)} if listed else {}),
        "metric": how.metric,
        "dimensions": how.dimensions,
        **({"average_precision": how.way} if how.way != "steps" else {}),
        **({"readings": list(readings)} if readings else {}),
        **({"whole": whole.entries} if whole else {}),
        **how.refine.entries,
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
    asked, remarks = protocol.search, [*protocol.remarks]
    plain = _all_sides(protocol, models, embeddings, roles, remarks)
    sides = _whitened(plain, wanted.whiten)
    parts = parts_of(asked, wanted.old)
    results, left_out = run_tests(asked, sides, roles, how)
    units, names = query_units(protocol), protocol.images.class_names
    found = measured(results, roles, how, parts, units, wanted.resamples, names, wanted.per_class)
    remarks += _unopposed(main_of(next(iter(results.values()))))
    if too_few := few(protocol):
        remarks.append(f"{too_few} only: the figures mean nothing.")
    found_twice = [
        equal_vectors(label, *both, asked.relevance)
        for label, both in plain.items()
        if label != roles.mapped
    ]
    remarks += filter(None, found_twice)
    if wanted.old is not None:
        remarks += [f"There are no {part}." for part in (OLD, NEW) if part not in parts]
    if wanted.orders:
        own = plain[roles.old].gallery
        found["backfill"] = backfills(asked, sides, own, roles, wanted.orders, results, how)
        widths = {sides[label].gallery.shape[1] for label in (roles.stale, *roles.new)}
        if len(widths) > 1:
            remarks.append("A mixed gallery has one width: 100 % is new / new in that width.")
    widths = {label: sides[label].gallery.shape[1] for label in models}
    text = [
        heading(protocol, how, models, widths, wanted.whole, bool(wanted.whiten)),
        *tables(found, roles, how, parts, units[1]),
    ]
    return found, text, remarks + left_out


def _all_sides(
    protocol: Protocol,
    models: Mapping[str, Model],
    embeddings: Mapping[str, np.ndarray],
    roles: Roles,
    remarks: list[str],
) -> dict[str, Sides]:
    """Both sides of each model, with those of the mapped gallery."""
    sides, once = {}, {}
    for label, rows in embeddings.items():  # of a model that is given twice nothing may differ
        key = models[label].sha256, models[label].view
        sides[label] = once.setdefault(key, sides_of(protocol.search, rows))
    if roles.mapped is not None:
        mapped, images = models[roles.mapped], sets_of(protocol)[-1]
        # a gallery with distractors is of two sets, which may lie in one file or in two
        gallery = mapped.rows(images) if "," in mapped.file else rows_of(mapped.file, images)
        zeros = check_rows(gallery, mapped.file, images.describe)
        if len(zeros):
            remarks.append(zeros_remark(mapped.file, zeros, len(gallery)))
        sides[roles.mapped] = Sides(gallery[:0], gallery)
    return sides


def _whitened(sides: Mapping[str, Sides], whiten: Mapping[str, Whitening]) -> dict[str, Sides]:
    """What is given twice stays one."""
    done: dict[tuple[int, int], Sides] = {}
    out = {}
    for label, (query, gallery) in sides.items():
        if label not in whiten:
            out[label] = sides[label]
            continue
        key = id(query), id(gallery)
        if key not in done:
            seen = whitened(query, whiten[label])
            done[key] = Sides(seen, seen if query is gallery else whitened(gallery, whiten[label]))
        out[label] = done[key]
    return out


def _unopposed(result: Retrieval) -> list[str]:
    free = result.unopposed
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
