"""Image search while an old gallery is backfilled: orders and curves."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bct.errors import BctError
from bct.metrics import backfill
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.retrieval import Retrieval
from bct.models.about import said_beside
from bct.models.classifiers import classifier_file
from bct.models.model import Model, rows_of
from bct.models.reference_checkpoints import reference_classifier
from bct.models.widths import same_width
from bct.protocols.image_search import sets_of
from bct.protocols.protocol import Protocol, Search
from bct.protocols.roles import Roles, Test
from bct.protocols.search_tests import (
    How,
    Readings,
    Sides,
    gallery_classes,
    main_of,
    mean_of,
    search,
)
from bct.protocols.verdict import ROUNDING
from bct.search.orders import (
    UNCERTAINTIES,
    distance_to_centre,
    order_random,
    orders_by_distance,
    uncertainty,
)

ORDERS = ("random", "distance", *UNCERTAINTIES)
SHARES = np.linspace(0, 1, 11)  # of the gallery, refreshed
PUBLISHED = np.linspace(0, 1, 5)  # AdvBCT's
_SEEDS = 3  # random orders that a curve is the mean of


class Course(NamedTuple):
    """How a gallery is refreshed. shares: (B,), from 0 to 1; ways: of one or several orders, over
    which a curve is the mean, bool (B, G): what holds new embeddings at each share."""

    shares: np.ndarray
    ways: list[np.ndarray]


Order = Callable[[np.ndarray, np.ndarray], Course]  # of the gallery that is refreshed and the old
# model's own, (G, D), which are one where nothing is mapped


def read_orders(
    names: Sequence[str], protocol: Protocol, old: Model | None, parity: str = "corrected"
) -> dict[str, Order]:
    """The orders by their names; whatever they need is looked for now.

    Args:
        names: of ORDERS, or files with a number for each gallery item, or for each of the list that
            they are left of, the highest of which come first.
        old: the old model, whose classifier an uncertainty is of.
        parity: "published": "random" refreshes as AdvBCT's code does, whole batches of 16.

    Raises BctError for an order that is neither known nor an .npy of (G,) or (G, 1); distances of a
    gallery whose items have no classes; uncertainties of a model without its classifier.
    """
    return {name: _order(name, protocol, old, parity) for name in names}


def _order(name: str, protocol: Protocol, old: Model | None, parity: str) -> Order:
    rows = len(protocol.search.gallery)
    if name == "random" and parity == "published":
        return lambda gallery, _: Course(
            PUBLISHED, [backfill.refreshed_in_batches(rows, PUBLISHED)]
        )
    if name == "random":
        return lambda gallery, _: _course([order_random(rows, seed) for seed in range(_SEEDS)])
    if name == "distance":
        classes = _gallery_classes(protocol)
        return lambda gallery, _: _course(orders_by_distance(distance_to_centre(gallery, classes)))
    if name in UNCERTAINTIES:
        weight, bias, unit = old_classifier(old, name)
        return lambda _, own: _course(
            orders_by_distance(uncertainty(own, weight, bias, unit, name))
        )
    if not name.endswith(".npy"):
        raise BctError(
            f"--backfill {name} is no order",
            f"choose {', '.join(ORDERS)}, or give an .npy of uncertainties",
        )
    given = rows_of(name, sets_of(protocol)[-1], column=True)
    return lambda gallery, _: _course(orders_by_distance(given))


def _course(orders: Sequence[np.ndarray]) -> Course:
    return Course(SHARES, [backfill.refreshed(order, SHARES) for order in orders])


def _gallery_classes(protocol: Protocol) -> np.ndarray:
    """Of each gallery item, (G,)."""
    known = gallery_classes(protocol)
    if known is None or (known < 0).any():
        unknown = len(protocol.search.gallery) if known is None else np.count_nonzero(known < 0)
        raise BctError(
            f"--backfill distance is that from a class's centre: of {unknown:,} items of the "
            "gallery the class is not known",
            f"choose random, {', '.join(UNCERTAINTIES)}, or give an .npy of uncertainties",
        )
    return known


def old_classifier(model: Model, order: str) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
    """(weight (C, D), bias (C,) or None, whether it is of unit embeddings) of a model: from the
    classifier.pt beside it, or from its own file.

    Raises BctError if it has none.
    """
    weights = Path(model.file)
    file = classifier_file(weights)
    if model.view is None or file.suffix.lower() == ".onnx":  # stored embeddings have none
        raise BctError(
            f"--backfill {order} asks the old model's classifier, and {weights} comes without one",
            "give the model.pt of a softmax model, or a folder of tools/import_model.py "
            "--classifier; or choose random",
        )
    found = reference_classifier(file, model.network)
    return *found, bool(said_beside(weights).get("head_unit"))


def backfills(
    asked: Search,
    sides: Mapping[str, Sides],
    own: np.ndarray,
    roles: Roles,
    orders: Mapping[str, Order],
    results: Mapping[Test, Readings],
    how: How,
) -> dict:
    """New model's label -> order -> quality -> curve, see backfilling.

    Args:
        own: the old model's gallery as it gives it, (G, D). orders: see read_orders.
        results: of search_tests.run_tests; has the old model's self test.
    """
    stale, before = sides[roles.stale].gallery, main_of(results[roles.old, roles.old])
    courses = {name: order(stale, own) for name, order in orders.items()}
    goals = {quality: mean_of(before, quality) for quality in how.ranked}
    return {
        label: backfilling(asked, sides[label], stale, courses, goals, how) for label in roles.new
    }


def backfilling(
    asked: Search,
    new: Sides,
    old: np.ndarray,
    courses: Mapping[str, Course],
    goals: dict,
    how: How,
) -> dict:
    """Name of an order -> quality -> its curve while an old gallery (G, D') is refreshed with the
    new model's rows.

    All rows of the mixed gallery have one width, as in an index. With "leading" the end of the
    curve is therefore new/new in the old width. Of several readings the one that decides is shown.

    Args:
        goals: quality -> what the old system reaches.
    """
    query, *galleries = same_width(how.dimensions, new.query, old, new.gallery)
    ways = [way for course in courses.values() for way in course.ways]
    if how.refine.ranks:
        found = (_one_by_one(asked, query, galleries, way, how) for way in ways)
    else:
        found = iter(
            retrieve_mixed(query, galleries, ways, asked.relevance, how.metric, how.ks, way=how.way)
        )
    out = {}
    for name, course in courses.items():
        results = list(itertools.islice(found, len(course.ways)))
        curves = {q: _curve_figures(course, results, q, goals[q]) for q in how.ranked}
        out[name] = curves | {"map": {**curves["map"], **_regressions(results)}}
    return out


def _one_by_one(
    asked: Search, query: np.ndarray, galleries: Sequence[np.ndarray], way: np.ndarray, how: How
) -> list[Retrieval]:
    """Each mixed gallery made and searched: what refines a ranking looks at all of it."""
    old, new = galleries
    return [main_of(search(asked, query, np.where(fresh[:, None], new, old), how)) for fresh in way]


def _curve_figures(
    course: Course, results: list[list[Retrieval]], quality: str, goal: float
) -> dict:
    """One quality's curve, the mean over several orders' points."""
    curves = [[mean_of(point, quality) for point in points] for points in results]
    curve = backfill.Curve(course.shares, np.mean(curves, axis=0))
    return {
        "shares": course.shares.tolist(),
        "values": curve.values.tolist(),
        **backfill.figures(curve),
        "enough_for_old": backfill.lasting_fraction(curve, goal, ROUNDING),
    }


def _regressions(results: list[list[Retrieval]]) -> dict[str, list[float]]:
    """What single queries lose at each share, see bct.metrics.backfill.Regressions: the mean over
    several orders."""
    each = [
        backfill.regressions(
            np.stack([point.ap for point in points]), np.stack([point.rank for point in points])
        )
        for points in results
    ]
    means = (np.mean(shares, axis=0).tolist() for shares in zip(*each, strict=True))
    return dict(zip(backfill.Regressions._fields, means, strict=True))
