"""The figures of a report by a search: mAP and top-1, first places that change. No threshold, so
neither FAR nor drift."""

import itertools

import numpy as np

from bct.metrics import backfill, label_free
from bct.metrics.flips import flipped
from bct.metrics.flips import flips as count_flips
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass, Relevance
from bct.metrics.retrieval import Retrieval, bootstrap_means
from bct.protocols.compare import query_units
from bct.protocols.search_tests import How, Sides, search, sides_of
from bct.report.study import (
    EXAMPLES,
    NEIGHBOURS,
    RANDOM_ORDERS,
    SHARES,
    Measure,
    Study,
    counts,
    curve_figures,
    gains,
)
from bct.search.orders import (
    disagreement,
    distance_to_centre,
    order_by_distance,
    order_random,
)

MAP = Measure("map", "mAP")
HOW = How()  # cosine, top-1 and top-5
BY_CENTRE = "furthest from its class's old centre first"


def analyse_searches(study: Study, resamples: int) -> dict:
    """All figures as plain values."""
    protocol = study.protocol
    queries, gallery, relevance = protocol.search
    sides = {role: sides_of(protocol.search, items) for role, items in study.items.items()}
    results = {
        f"{query} / {other}": search(relevance, sides[query].query, sides[other].gallery, HOW)
        for query, other in study.tests
    }
    by_class = isinstance(relevance, ByClass)
    return {
        "measure": MAP._asdict(),
        "protocol": {
            "subset": protocol.name,
            "images": len(protocol.images),
            "queries": len(queries),
            "without": results["old / old"].without,
            "gallery": len(gallery),
            "relevance": "class" if by_class else "item",
            "leave_one_out": by_class and relevance.leave_one_out,
        },
        "tests": {name: {"retrieval": figures(result)} for name, result in results.items()},
        "compatibility": compatibility(study, results, resamples),
        "flips": flips(study, results["old / old"], results["new / old"]),
        "backfill": backfilling(sides, results, relevance),
        "label_free": signals(study, sides, relevance),
    }


def figures(result: Retrieval) -> dict:
    """One test: mAP, top-1, top-5, and how many queries have something to find."""
    top = {f"top{k}": share for k, share in result.top.items()}
    return {"map": result.mean_ap, **top, "queries": result.queries}


def compatibility(study: Study, results: dict[str, Retrieval], resamples: int) -> dict:
    """See study.gains; the intervals' units are compare.query_units."""
    tests = [results[name] for name in study.selves]
    found = tests[0].rank > 0  # queries that have a positive
    units, over = query_units(study.protocol)
    precision = np.stack([test.ap[found] for test in tests])
    replicates = bootstrap_means(precision, units[found], resamples)
    values = {name: results[name].mean_ap for name in study.selves}
    return gains(MAP, values, replicates, over)


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
    sides: dict[str, Sides], results: dict[str, Retrieval], relevance: Relevance
) -> dict:
    """Backfill curves of mAP, and how much is enough. Only classes have centres."""
    old, new = sides["old"].gallery, sides["new"].gallery
    orders = {"random": [order_random(len(old), seed) for seed in range(RANDOM_ORDERS)]}
    if isinstance(relevance, ByClass):
        orders[BY_CENTRE] = [order_by_distance(distance_to_centre(old, relevance.gallery))]
    orders["old and new disagree most first"] = [order_by_distance(disagreement(old, new))]
    mixtures = [backfill.refreshed(way, SHARES) for ways in orders.values() for way in ways]
    curves = iter(
        retrieve_mixed(sides["new"].query, [old, new], mixtures, relevance, HOW.metric, HOW.ks)
    )
    before, after = (results[name].mean_ap for name in ("old / old", "new / new"))
    out: dict = {"shares": SHARES.tolist(), "old": before, "orders": {}}
    for name, ways in orders.items():
        values = [
            np.array([point.mean_ap for point in points])
            for points in itertools.islice(curves, len(ways))
        ]
        out["orders"][name] = curve_figures(MAP, values, before, after)
    return out


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
