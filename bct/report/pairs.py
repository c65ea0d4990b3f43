"""The figures of a report by pairs: TAR at FAR, drift of the threshold, decisions that change.

q/g is a query by model q against a gallery by model g; the gallery is the first side of a pair.
"""

import numpy as np

from bct.metrics import backfill, label_free
from bct.metrics.bootstrap import bootstrap_tar
from bct.metrics.flips import flipped, right_at_far, threshold_drift, verification_flips
from bct.metrics.percentiles import interval
from bct.metrics.scores import FARS, rate_name, roc_points
from bct.protocols.compare import pair_units
from bct.protocols.scoring import open_set, resolved, verification
from bct.protocols.templates import pair_scores
from bct.protocols.verdict import or_none
from bct.report.study import (
    DISAGREEMENT,
    EXAMPLES,
    NEIGHBOURS,
    RANDOM_ORDERS,
    SHARES,
    Drawings,
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


def measure_at(far: float) -> Measure:
    """TAR at this FAR."""
    return Measure("tar", "TAR", f"FAR {rate_name(far)}")


def analyse_pairs(study: Study, far: float, resamples: int) -> tuple[dict, Drawings]:
    """All figures as plain values, and what the page draws."""
    protocol, items = study.protocol, study.items
    first, second, genuine = protocol.pairs
    scores, tests = {}, {}
    for query, gallery in study.tests:
        name = f"{query} / {gallery}"
        enrolled, probe = items[gallery], items[query]
        scores[name] = pair_scores(enrolled, probe, first, second)
        tests[name] = {"pairs": verification(scores[name], genuine)}
        if protocol.galleries:
            tests[name]["search"] = open_set(enrolled, probe, protocol.galleries, protocol.probes)
    old, cross = (scores[name] for name in study.selves[:2])
    tar = {name: tests[name]["pairs"]["tar"][rate_name(far)] for name in study.selves}
    *units, over = pair_units(protocol)
    systems = np.stack([scores[name] for name in study.selves])
    replicates = bootstrap_tar(systems, *units, genuine, (far,), resamples)[:, :, 0]
    drift = drifts(old, cross, genuine)
    deployed = next(point["threshold"] for point in drift if point["far"] == far)
    report = {
        "measure": measure_at(far)._asdict(),
        "remarks": [],
        "far": far,
        "protocol": {
            "subset": protocol.name,
            "images": len(protocol.images),
            "templates": protocol.items,
            "pairs": len(genuine),
            "genuine": int(genuine.sum()),
            "identification": bool(protocol.galleries),
        },
        "tests": tests,
        "compatibility": gains(measure_at(far), tar, replicates, over),
        "evidence": look(study, tar, replicates, far)._asdict(),
        "drift": drift,
        "flips": flips(study, scores, far),
        "backfill": backfilling(study, scores, tar, far, deployed, resamples),
        "label_free": signals(study),
    }
    curves = {
        name: roc_points(scores[name], genuine, max(1 / len(old), 1e-6)) for name in study.selves
    }
    return report, Drawings(curves, {name: scores[name] for name in study.selves[:2]}, genuine)


def drifts(old: np.ndarray, cross: np.ndarray, genuine: np.ndarray) -> list[dict]:
    """At each FAR that the protocol resolves: the old threshold, and what it does to new/old."""
    rates = tuple(far for far in FARS if resolved(genuine, far))
    return [
        {
            "far": point.old.target,
            "threshold": point.old.threshold,
            "old_far": point.old.far,
            "old_tar": point.old.tar,
            "new_far": point.new.far,
            "new_tar": point.new.tar,
            "far_ratio": or_none(point.far_ratio),
            "restored": point.restored.threshold,
            "restored_tar": point.restored.tar,
        }
        for point in threshold_drift(old, cross, genuine, rates)
    ]


def flips(study: Study, scores: dict, far: float) -> dict:
    """Decisions that change when queries come from the new model; the gallery stays the old one."""
    protocol = study.protocol
    first, second, genuine = protocol.pairs
    old, cross = scores["old / old"], scores["new / old"]
    found = verification_flips(old, cross, genuine, far)
    lost, won = flipped(*(right_at_far(s, genuine, far) for s in (old, cross)))  # (P,)
    change = cross - old
    examples = {}
    for kind, chosen in (
        ("genuine pairs lost", lost & genuine),
        ("impostors newly accepted", lost & ~genuine),
        ("genuine pairs won", won & genuine),
    ):
        pairs = np.flatnonzero(chosen)
        pairs = pairs[np.argsort(-np.abs(change[pairs]), kind="stable")][:EXAMPLES]
        examples[kind] = [
            {
                "gallery": protocol.item_id(first[i]),
                "query": protocol.item_id(second[i]),
                "old": float(old[i]),
                "new": float(cross[i]),
            }
            for i in pairs
        ]
    return {
        "genuine": counts(found.genuine, "pairs"),
        "impostor": counts(found.impostor, "pairs"),
        "examples": examples,
    }


def backfilling(
    study: Study,
    scores: dict[str, np.ndarray],
    tar: dict[str, float],
    far: float,
    deployed: float,
    resamples: int,
) -> dict:
    """Backfill curves of 1:1 TAR for three orders, how much is enough, and what stays of TAR and
    FAR at the deployed threshold.

    Each order has, at SHARES: "tar" with the threshold set anew, "threshold", that one; "kept_tar"
    and "kept_far" at the deployed one. "step": see study.step.
    """
    first, _, genuine = study.protocol.pairs
    old, cross, own = (scores[name] for name in study.selves[:3])
    gallery, row = np.unique(first, return_inverse=True)
    before, after = tar["old / old"], tar["new / new"]
    out: dict = {"shares": SHARES.tolist(), "old": before, "step": None, "orders": {}}
    orders = backfill_orders(study, gallery)
    for name, order in orders.items():
        points = np.array(  # (ways, B, 4)
            [
                [
                    backfill.pair_point(
                        backfill.mixed_scores(cross, own, row, fresh), genuine, far, deployed
                    )
                    for fresh in backfill.refreshed(way, SHARES)
                ]
                for way in order.ways
            ]
        )
        mean = dict(zip(backfill.PairPoint._fields, points.mean(0).T.tolist(), strict=True))
        out["orders"][name] = mean | curve_figures(
            measure_at(far), points[:, :, 0], before, after, order.available
        )
    enough = first_enough(out["orders"])
    if enough is not None:
        name, at = enough
        fresh = [backfill.refreshed(way, SHARES)[at] for way in orders[name].ways]
        mixed = [backfill.mixed_scores(cross, own, row, rows) for rows in fresh]
        *units, _ = pair_units(study.protocol)
        found = bootstrap_tar([old, *mixed], *units, genuine, (far,), resamples)[:, :, 0]
        quality = out["orders"][name]["tar"][at]
        gap = interval(found[:, 1:].mean(1) - found[:, 0], quality - before)
        out["step"] = step(name, at, quality, gap)
    return out


def backfill_orders(study: Study, gallery: np.ndarray) -> dict[str, Order]:
    """Args: gallery: rows of its items, ascending."""
    old, new = study.items["old"][gallery], study.items["new"][gallery]
    n = len(gallery)
    return {
        "random": Order([order_random(n, seed) for seed in range(RANDOM_ORDERS)]),
        "furthest from its old centre first": Order(orders_by_distance(spread(study, gallery))),
        DISAGREEMENT: Order([order_by_distance(disagreement(old, new))], available=False),
    }


def spread(study: Study, gallery: np.ndarray) -> np.ndarray:
    """Mean distance of a gallery item's images from their centre, by the old model, (n,).

    Args:
        gallery: rows of the items, ascending.
    """
    templates = study.protocol.templates
    item = np.arange(len(study.protocol.images)) if templates is None else templates.row
    at = np.minimum(np.searchsorted(gallery, item), len(gallery) - 1)
    images = np.flatnonzero(gallery[at] == item)
    distance = distance_to_centre(study.images["old"][images], at[images])
    return np.bincount(at[images], distance, len(gallery)) / np.bincount(at[images])


def signals(study: Study) -> dict:
    """What can be known before anything is labelled."""
    old, new, protocol = study.items["old"], study.items["new"], study.protocol
    probes, gallery = np.unique(protocol.pairs.second), np.unique(protocol.pairs.first)
    if protocol.galleries:
        probes = protocol.probes.rows
        gallery = np.concatenate([side.rows for side in protocol.galleries])
    k = min(NEIGHBOURS, len(gallery))
    before = old[probes], old[gallery]
    return {
        "cosine": float((old * new).sum(1).mean()),
        "procrustes_residual": label_free.procrustes_residual(new, old),
        "neighbours": k,
        "overlap": label_free.neighbour_overlap(*before, new[probes], old[gallery], k),
    }
