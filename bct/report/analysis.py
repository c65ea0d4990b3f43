"""What an upgrade brings, costs and risks: the figures of the report, from template embeddings.

q/g is a query by model q against a gallery by model g; the gallery is the first side of a pair.
"""

import itertools
from typing import NamedTuple

import numpy as np

from bct.metrics import backfill, compatibility, label_free
from bct.metrics.bootstrap import bootstrap_tar, interval
from bct.metrics.flips import Flips, flipped, right_at_far, threshold_drift, verification_flips
from bct.metrics.scores import FARS, rate_name, roc_points
from bct.search.orders import disagreement, distance_to_centre, order_by_distance, order_random
from tools.ijbc.protocol import Gallery, Protocol
from tools.ijbc.scoring import Templates, open_set, pair_scores, verification

SHARES = np.linspace(0, 1, 21)  # of the gallery, re-extracted
EPS = 0.005  # a share is enough when its TAR is this near to the goal
MUCH_DRIFT = 1.5  # times the agreed false accepts
_NEIGHBOURS = 10
_EXAMPLES = 8


class Study(NamedTuple):
    """What a report is made from.

    features: label -> image embeddings (N, D); templates: the same, aggregated. Labels are "old",
    "new" and, if there is one, "independent".
    """

    protocol: Protocol
    galleries: list[Gallery]
    probes: Gallery
    features: dict[str, np.ndarray]
    templates: dict[str, Templates]


class Drawings(NamedTuple):
    """Arrays for the figures; the report itself holds no scores."""

    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    scores: dict[str, np.ndarray]


def analyse(study: Study, far: float, resamples: int = 1000) -> tuple[dict, Drawings]:
    """The report as a dict of plain values, and what its figures need."""
    protocol = study.protocol
    scores, tests = {}, {}
    for query, gallery in itertools.product(study.templates, repeat=2):
        name = f"{query} / {gallery}"
        enrolled, probe = study.templates[gallery], study.templates[query]
        scores[name] = pair_scores(enrolled, probe, protocol.first, protocol.second)
        tests[name] = {
            "pairs": verification(scores[name], protocol.genuine),
            "search": open_set(enrolled, probe, study.galleries, study.probes),
        }
    old, cross, own = (scores[name] for name in ("old / old", "new / old", "new / new"))
    report = {
        "far": far,
        "protocol": {
            "subset": protocol.subset,
            "images": len(protocol.names),
            "templates": len(np.unique(protocol.templates)),
            "pairs": len(protocol.genuine),
            "genuine": int(protocol.genuine.sum()),
        },
        "tests": tests,
        "compatibility": gains(study, scores, tests, far, resamples),
        "drift": drifts(old, cross, protocol.genuine),
        "flips": flips(study, scores, far),
        "backfill": backfilling(study, cross, own, tests, far),
        "label_free": signals(study),
    }
    report["verdict"] = verdict(report)
    drawn = ["old / old", "new / old", "new / new"]
    drawn += ["independent / independent"] * ("independent" in study.templates)
    curves = {
        name: roc_points(scores[name], protocol.genuine, max(1 / len(old), 1e-6)) for name in drawn
    }
    return report, Drawings(curves, {name: scores[name] for name in drawn[:2]})


def units(study: Study, templates: np.ndarray) -> np.ndarray:
    """The subject of each template, from the 1:N files; a template they lack is its own unit."""
    known = np.concatenate([g.templates for g in (*study.galleries, study.probes)])
    subjects = np.concatenate([g.subjects for g in (*study.galleries, study.probes)])
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], templates), len(known) - 1)
    found = known[order][at] == templates
    return np.where(found, subjects[order][at], -1 - templates)


def gains(study: Study, scores: dict, tests: dict, far: float, resamples: int) -> dict:
    """The criterion, update gain, price and P_up, P_comp, P_1, with intervals over subjects."""
    names = ["old / old", "new / old", "new / new"]
    names += ["independent / independent"] * ("independent" in study.templates)
    protocol = study.protocol
    replicates = bootstrap_tar(
        np.stack([scores[name] for name in names]),
        units(study, protocol.first),
        units(study, protocol.second),
        protocol.genuine,
        (far,),
        resamples,
    )[:, :, 0]
    tar = [tests[name]["pairs"]["tar"][rate_name(far)] for name in names]
    differences = {
        name: interval(replicates[:, k] - replicates[:, 0], tar[k] - tar[0])._asdict()
        for k, name in enumerate(names)
        if k > 0
    }
    out = {
        "compatible": compatibility.compatible(tar[1], tar[0]),
        "tar": dict(zip(names, tar, strict=True)),
        "differences": differences,
    }
    if len(names) == 4:
        o, c, s, p = tar
        out |= {
            "update_gain": _or_none(compatibility.update_gain(c, o, p)),
            "price": compatibility.price(s, p),
            "p_up": _or_none(compatibility.p_up(s, p)),
            "p_comp": _or_none(compatibility.p_comp(c, o, p)),
            "p_1": _or_none(compatibility.p_1(s, c, o, p)),
        }
    return out


def drifts(old: np.ndarray, cross: np.ndarray, genuine: np.ndarray) -> list[dict]:
    """At each FAR that the protocol resolves: the old threshold, and what it does to new/old."""
    resolved = tuple(far for far in FARS if far * np.count_nonzero(~genuine) >= 1)
    return [
        {
            "far": point.old.target,
            "threshold": point.old.threshold,
            "old_far": point.old.far,
            "old_tar": point.old.tar,
            "new_far": point.new.far,
            "new_tar": point.new.tar,
            "far_ratio": _or_none(point.far_ratio),
            "restored": point.restored.threshold,
            "restored_tar": point.restored.tar,
        }
        for point in threshold_drift(old, cross, genuine, resolved)
    ]


def flips(study: Study, scores: dict, far: float) -> dict:
    """Decisions that change when queries come from the new model; the gallery stays the old one."""
    protocol = study.protocol
    old, cross = scores["old / old"], scores["new / old"]
    found = verification_flips(old, cross, protocol.genuine, far)
    lost, won = flipped(*(right_at_far(s, protocol.genuine, far) for s in (old, cross)))  # (P,)
    change = cross - old
    examples = {}
    for kind, chosen in (
        ("genuine pairs lost", lost & protocol.genuine),
        ("impostors newly accepted", lost & ~protocol.genuine),
        ("genuine pairs won", won & protocol.genuine),
    ):
        pairs = np.flatnonzero(chosen)
        pairs = pairs[np.argsort(-np.abs(change[pairs]), kind="stable")][:_EXAMPLES]
        examples[kind] = [
            {
                "gallery": int(protocol.first[i]),
                "query": int(protocol.second[i]),
                "old": float(old[i]),
                "new": float(cross[i]),
            }
            for i in pairs
        ]
    return {
        "genuine": counts(found.genuine),
        "impostor": counts(found.impostor),
        "examples": examples,
    }


def counts(kind: Flips) -> dict:
    return {
        "pairs": kind.total,
        "negative": kind.negative,
        "positive": kind.positive,
        "relative": _or_none(kind.relative),
    }


def backfilling(study: Study, cross: np.ndarray, own: np.ndarray, tests: dict, far: float) -> dict:
    """Backfill curves of 1:1 TAR for three orders, and how much is enough."""
    protocol = study.protocol
    gallery, row = np.unique(protocol.first, return_inverse=True)
    old, new = (
        study.templates[label].features[study.templates[label].rows(gallery)]
        for label in ("old", "new")
    )
    quality = backfill.pair_quality(cross, own, row, protocol.genuine, far)
    n = len(gallery)
    orders = {
        "random": [order_random(n, seed) for seed in range(3)],
        "furthest from its old centre first": [order_by_distance(spread(study, gallery))],
        "old and new disagree most first": [order_by_distance(disagreement(old, new))],
    }
    key = rate_name(far)
    before = tests["old / old"]["pairs"]["tar"][key]
    after = tests["new / new"]["pairs"]["tar"][key]
    out: dict = {"shares": SHARES.tolist(), "old": before, "orders": {}}
    for name, ways in orders.items():
        curves = [backfill.curve(order, SHARES, quality) for order in ways]
        curve = backfill.Curve(SHARES, np.mean([c.values for c in curves], axis=0))
        steps = backfill.violations(curve)
        out["orders"][name] = {
            "tar": curve.values.tolist(),
            "area": backfill.area(curve),
            "published_mean": backfill.published_mean(curve),
            "violations": steps._asdict(),
            "enough_for_all_new": backfill.smallest_fraction(curve, after, EPS),
            "enough_for_old": backfill.smallest_fraction(curve, before, 0.0),
        }
    return out


def spread(study: Study, gallery: np.ndarray) -> np.ndarray:
    """Mean distance of a gallery template's images from their centre, by the old model, (n,)."""
    template = study.protocol.templates
    at = np.minimum(np.searchsorted(gallery, template), len(gallery) - 1)
    images = np.flatnonzero(gallery[at] == template)
    distance = distance_to_centre(study.features["old"][images], at[images])
    return np.bincount(at[images], distance, len(gallery)) / np.bincount(at[images])


def signals(study: Study) -> dict:
    """What can be known before anything is labelled."""
    old, new = study.templates["old"], study.templates["new"]
    probes = study.probes.templates
    gallery = np.concatenate([g.templates for g in study.galleries])

    def rows(model: Templates, ids: np.ndarray) -> np.ndarray:
        return model.features[model.rows(ids)]

    k = min(_NEIGHBOURS, len(gallery))
    before = rows(old, probes), rows(old, gallery)
    return {
        "cosine": float((old.features * new.features).sum(1).mean()),
        "procrustes_residual": label_free.procrustes_residual(new.features, old.features),
        "neighbours": k,
        "overlap": label_free.neighbour_overlap(*before, rows(new, probes), rows(old, gallery), k),
    }


def verdict(report: dict) -> dict:
    """May the new model serve the old gallery? A decision and its reasons, in words."""
    far = rate_name(report["far"])
    tar = report["compatibility"]["tar"]
    before, cross, own = (tar[name] for name in ("old / old", "new / old", "new / new"))
    gap = report["compatibility"]["differences"]["new / old"]
    drift = next(point for point in report["drift"] if point["far"] == report["far"])
    orders = report["backfill"]["orders"]
    reachable = {
        name: order["enough_for_old"]
        for name, order in orders.items()
        if order["enough_for_old"] is not None
    }
    reasons = [
        f"With the old gallery untouched, new queries reach TAR {cross:.3f} at FAR {far}; "
        f"the old system has {before:.3f} (difference {gap['estimate']:+.3f}, 95 % interval "
        f"{gap['low']:+.3f} to {gap['high']:+.3f}).",
        f"With the whole gallery re-extracted they reach {own:.3f}.",
    ]
    if own <= before and cross <= before:
        decision, headline = "do not", "Do not deploy: the new model is no better than the old one"
    elif cross > before:
        decision = "deploy now"
        sure = "" if gap["low"] > 0 else ", though the difference is within the uncertainty"
        headline = f"Deploy now: the old gallery can stay as it is{sure}"
    elif reachable and min(reachable.values()) < 1:
        name = min(reachable, key=reachable.get)
        share = reachable[name]
        decision = "backfill first"
        headline = f"Deploy and backfill {100 * share:.0f} % of the gallery first"
        reasons.append(f"In the order “{name}”, that much brings it to the old system's quality.")
    else:
        decision, headline = "do not", "Do not deploy until the whole gallery is re-extracted"
    moved = f"from {drift['threshold']:.3f} to {drift['restored']:.3f}"
    if drift["far_ratio"] is None:
        reasons.append("Whether the deployed threshold can stay can't be told at so low a FAR.")
    elif drift["far_ratio"] > MUCH_DRIFT:
        reasons.append(
            f"Change the threshold {moved}: at the old one, false accepts are "
            f"{drift['far_ratio']:.1f} times as many as before."
        )
    elif drift["new_tar"] < before <= cross:
        reasons.append(
            f"Change the threshold {moved}: at the old one, new queries reach TAR "
            f"{drift['new_tar']:.3f} only, less than the old system."
        )
    else:
        reasons.append(f"The deployed threshold {drift['threshold']:.3f} can stay.")
    if decision == "deploy now" and reasons[-1].startswith("Change"):
        headline = headline.replace("Deploy now", "Deploy now, with a new threshold", 1)
    return {"decision": decision, "headline": headline, "reasons": reasons}


def _or_none(value: float) -> float | None:
    """JSON has no NaN: an undefined figure is null."""
    return None if np.isnan(value) else float(value)
