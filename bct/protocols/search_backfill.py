"""Image search while an old gallery is backfilled: orders and curves."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from bct.errors import BctError
from bct.metrics import backfill
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass, Relevance
from bct.metrics.retrieval import Retrieval
from bct.models.widths import same_width
from bct.protocols.roles import Roles, Test
from bct.protocols.search_tests import How, Sides, mean_of
from bct.protocols.verdict import ROUNDING
from bct.search.orders import distance_to_centre, order_random, orders_by_distance
from bct.stored.vector_files import open_vectors

ORDERS = ("random", "distance")
SHARES = np.linspace(0, 1, 11)  # of the gallery, refreshed
_SEEDS = 3  # random orders that a curve is the mean of


def read_orders(names: Sequence[str], rows: int) -> dict[str, np.ndarray | None]:
    """Name of an order -> None, or of a file the number that it has for each gallery item, (rows,).

    Raises BctError for an order that is neither known nor an .npy of (rows,) or (rows, 1).
    """
    found = {}
    for name in names:
        if name not in ORDERS and not name.endswith(".npy"):
            raise BctError(
                f"--backfill {name} is no order",
                f"choose {', '.join(ORDERS)}, or give an .npy of uncertainties",
            )
        found[name] = None if name in ORDERS else open_vectors(name, rows, column=True)[0]
    return found


def backfills(
    relevance: ByClass,
    sides: Mapping[str, Sides],
    roles: Roles,
    orders: Mapping[str, np.ndarray | None],
    results: Mapping[Test, Retrieval],
    how: How,
) -> dict:
    """New model's label -> order -> quality -> curve, see backfilling.

    Args:
        orders: see read_orders. results: of search_tests.run_tests; has the old model's self test.
    """
    stale, before = sides[roles.stale].gallery, results[roles.old, roles.old]
    ways = {name: _permutations(name, given, stale, relevance) for name, given in orders.items()}
    goals = {quality: mean_of(before, quality) for quality in how.qualities}
    return {
        label: backfilling(relevance, sides[label], stale, ways, goals, how) for label in roles.new
    }


def _permutations(
    name: str, given: np.ndarray | None, gallery: np.ndarray, relevance: ByClass
) -> list[np.ndarray]:
    """What comes first in a backfill, one or several permutations of the gallery."""
    if given is None and name == "random":
        return [order_random(len(gallery), seed) for seed in range(_SEEDS)]
    first = distance_to_centre(gallery, relevance.gallery) if given is None else given
    return orders_by_distance(first)


def backfilling(
    relevance: Relevance,
    new: Sides,
    old: np.ndarray,
    orders: dict[str, Sequence[np.ndarray]],
    goals: dict,
    how: How,
) -> dict:
    """Name of an order -> quality -> its curve while an old gallery (G, D') is refreshed with the
    new model's rows.

    All rows of the mixed gallery have one width, as in an index. With "leading" the end of the
    curve is therefore new/new in the old width.

    Args:
        orders: name -> permutations of the gallery; the curve is the mean over them.
        goals: quality -> what the old system reaches.
    """
    query, *galleries = same_width(how.dimensions, new.query, old, new.gallery)
    ways = [backfill.refreshed(way, SHARES) for each in orders.values() for way in each]
    found = iter(retrieve_mixed(query, galleries, ways, relevance, how.metric, how.ks))
    out = {}
    for name, each in orders.items():
        results = list(itertools.islice(found, len(each)))
        out[name] = {q: _backfill_figures(results, q, goals[q]) for q in how.qualities}
    return out


def _backfill_figures(results: list[list[Retrieval]], quality: str, goal: float) -> dict:
    """One quality's curve, the mean over several orders' points."""
    curves = [[mean_of(point, quality) for point in points] for points in results]
    curve = backfill.Curve(SHARES, np.mean(curves, axis=0))
    return {
        "shares": SHARES.tolist(),
        "values": curve.values.tolist(),
        **backfill.figures(curve),
        "enough_for_old": backfill.lasting_fraction(curve, goal, ROUNDING),
    }
