"""The figures of a report by a search: mAP and top-1, first places that change. No threshold, so
neither FAR nor drift."""

import itertools

import numpy as np

from bct.metrics import backfill, label_free
from bct.metrics.flips import flipped
from bct.metrics.flips import flips as count_flips
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.percentiles import interval
from bct.metrics.relevance import ByClass, Relevance
from bct.metrics.retrieval import Retrieval, bootstrap_means
from bct.protocols.overlap import equal_vectors
from bct.protocols.protocol import Protocol
from bct.protocols.search_tests import (
    How,
    Readings,
    Sides,
    gallery_classes,
    main_of,
    map_name,
    query_units,
    search,
    sides_of,
)
from bct.report.study import (
    DISAGREEMENT,
    EXAMPLES,
    NEIGHBOURS,
    RANDOM_ORDERS,
    SHARES,
    Measure,
    Order,
    Study,
    counts,
    curve_figures,
    first_enough,
    gains,
    look,
    step,
)
from bct.search.orders import (
    disagreement,
    distance_to_centre,
    order_by_distance,
    order_random,
    orders_by_distance,
)

MAP = Measure("map", "mAP")
HOW = How()  # cosine, top-1 and top-5
BY_CENTRE = "furthest from its class's old centre first"


def measure_of(protocol: Protocol) -> Measure:
    """What a report by this protocol's search judges by."""
    return MAP._replace(name=map_name(protocol.search))


def analyse_searches(study: Study, resamples: int) -> dict:
    """All figures as plain values."""
    protocol = study.protocol
    asked = protocol.search
    queries, gallery, relevance = asked[:3]
    how, measure = HOW._replace(way=asked.precision), measure_of(protocol)
    sides = {role: sides_of(protocol.search, items) for role, items in study.items.items()}
    readings = {
        f"{query} / {other}": search(asked, sides[query].query, sides[other].gallery, how)
        for query, other in study.tests
    }
    results = {name: main_of(found) for name, found in readings.items()}
    by_class = isinstance(relevance, ByClass)
    said = (
        equal_vectors(f"the {role} embeddings", *both, relevance) for role, both in sides.items()
    )
    found = results["old / old"].rank > 0  # queries that have a positive
    units, over = query_units(protocol)
    precision = np.stack([results[name].ap[found] for name in study.selves])
    replicates = bootstrap_means(precision, units[found], resamples)
    quality = {name: results[name].mean_ap for name in study.selves}
    return {
        "measure": measure._asdict(),
        "remarks": list(filter(None, said)),
        "protocol": {
            "subset": protocol.name,
            "images": len(protocol.images),
            "queries": len(queries),
            "without": results["old / old"].without,
            "unopposed": results["old / old"].unopposed,
            "gallery": len(gallery),
            "relevance": "class" if by_class else "item",
            "precision": asked.precision,
            "leave_one_out": by_class and relevance.leave_one_out,
        },
        "tests": {name: tested(found) for name, found in readings.items()},
        "compatibility": gains(measure, quality, replicates, over),
        "evidence": look(study, quality, replicates)._asdict(),
        "flips": flips(study, results["old / old"], results["new / old"]),
        "backfill": backfilling(study, sides, results, resamples),
        "label_free": signals(study, sides, relevance),
    }


def tested(found: Readings) -> dict:
    """One test, by the reading that decides; and by each, where there are several."""
    out: dict = {"retrieval": figures(main_of(found))}
    if len(found) > 1:
        out["readings"] = {name: figures(result) for name, result in found.items()}
    return out


def figures(result: Retrieval) -> dict:
    """One test: mAP, top-1, top-5, and how many queries have something to find."""
    top = {f"top{k}": share for k, share in result.top.items()}
    return {"map": result.mean_ap, **top, "queries": result.queries}


def flips(study: Study, old: Retrieval, cross: Retrieval) -> dict:
    """Queries whose first place is right or wrong and turns when the new model asks; the gallery
    stays the old one. Examples are those whose first right item moves most."""
    found = np.flatnonzero(old.rank > 0)
    before, now = old.rank[found], cross.rank[found]
    lost, won = flipped(before == 1, now == 1)
    rows = study.protocol.search.queries[found]
    examples = {}
    for kind, chosen in (("first places lost", lost), ("first places won", won)):
        at = np.flatnonzero(chosen)
        at = at[np.argsort(-np.abs(now - before)[at], kind="stable")][:EXAMPLES]
        examples[kind] = [
            {
                "query": study.protocol.item_id(rows[i]),
                "old": int(before[i]),
                "new": int(now[i]),
            }
            for i in at
        ]
    changes = counts(count_flips(before == 1, now == 1), "queries")
    return {"first place": changes, "examples": examples}


def backfilling(
    study: Study, sides: dict[str, Sides], results: dict[str, Retrieval], resamples: int
) -> dict:
    """Backfill curves of mAP, and how much is enough; "step": see study.step."""
    asked, query = study.protocol.search, sides["new"].query
    relevance = asked.relevance
    old, new = sides["old"].gallery, sides["new"].gallery
    orders = backfill_orders(old, new, gallery_classes(study.protocol))
    ways = [backfill.refreshed(way, SHARES) for order in orders.values() for way in order.ways]
    curves = iter(
        retrieve_mixed(query, [old, new], ways, relevance, HOW.metric, HOW.ks, way=asked.precision)
    )
    was = results["old / old"]
    before, after = was.mean_ap, results["new / new"].mean_ap
    out: dict = {"shares": SHARES.tolist(), "old": before, "step": None, "orders": {}}
    points = {
        name: list(itertools.islice(curves, len(order.ways))) for name, order in orders.items()
    }
    for name, order in orders.items():
        values = [np.array([point.mean_ap for point in way]) for way in points[name]]
        out["orders"][name] = curve_figures(MAP, values, before, after, order.available)
    enough = first_enough(out["orders"])
    if enough is not None:
        name, at = enough
        found, (units, _) = was.rank > 0, query_units(study.protocol)
        precision = np.stack([was.ap, np.mean([way[at].ap for way in points[name]], axis=0)])
        means = bootstrap_means(precision[:, found], units[found], resamples)
        quality = out["orders"][name]["map"][at]
        out["step"] = step(name, at, quality, interval(means[:, 1] - means[:, 0], quality - before))
    return out


def backfill_orders(
    old: np.ndarray, new: np.ndarray, classes: np.ndarray | None
) -> dict[str, Order]:
    """Of galleries (G, D), whose items' classes are (G,): only these have centres."""
    orders = {"random": Order([order_random(len(old), seed) for seed in range(RANDOM_ORDERS)])}
    if classes is not None and (classes >= 0).all():
        spread = distance_to_centre(old, classes)
        orders[BY_CENTRE] = Order(orders_by_distance(spread))
    by_gap = order_by_distance(disagreement(old, new))
    return orders | {DISAGREEMENT: Order([by_gap], available=False)}


def signals(study: Study, sides: dict[str, Sides], relevance: Relevance) -> dict:
    """What can be known before anything is labelled."""
    old, new = study.items["old"], study.items["new"]
    (asked, gallery), itself = sides["old"], getattr(relevance, "leave_one_out", False)
    k = min(NEIGHBOURS, len(gallery) - itself)
    return {
        "cosine": float(1 - disagreement(old, new).mean(dtype=np.float64)),
        "procrustes_residual": label_free.procrustes_residual(new, old),
        "neighbours": k,
        "overlap": label_free.neighbour_overlap(
            asked, gallery, sides["new"].query, gallery, k, itself
        ),
    }
