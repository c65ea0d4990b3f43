"""What an upgrade brings, costs and risks: the figures of the report, from template embeddings.

q/g is a query by model q against a gallery by model g; the gallery is the first side of a pair.
"""

import itertools
from typing import NamedTuple

import numpy as np

from bct.metrics import backfill, label_free
from bct.metrics.bootstrap import bootstrap_tar, interval
from bct.metrics.flips import Flips, flipped, right_at_far, threshold_drift, verification_flips
from bct.metrics.scores import FARS, rate_name, roc_points
from bct.protocols.protocol import Protocol
from bct.protocols.scoring import open_set, verification
from bct.protocols.templates import pair_scores
from bct.protocols.verdict import judged, or_none
from bct.search.orders import (
    disagreement,
    distance_to_centre,
    order_by_distance,
    order_random,
)

SHARES = np.linspace(0, 1, 21)  # of the gallery, re-extracted
EPS = 0.005  # a share is enough when its TAR is this near to the goal
MUCH_DRIFT = 1.5  # times the agreed false accepts
_NEIGHBOURS = 10
_EXAMPLES = 8


class Study(NamedTuple):
    """What a report is made from.

    images: role -> embeddings of the images (N, D); items: role -> of the items, unit (T, D). Roles
    are "old", "new" and, if there is one, "alone".
    """

    protocol: Protocol
    images: dict[str, np.ndarray]
    items: dict[str, np.ndarray]

    @property
    def selves(self) -> list[str]:
        """The tests that are compared: old/old, new/old, new/new, alone/alone if there is one."""
        names = ["old / old", "new / old", "new / new"]
        return names + ["alone / alone"] * ("alone" in self.items)


def study(protocol: Protocol, embeddings: dict[str, np.ndarray]) -> Study:
    """Of embeddings of the protocol's images by role, (N, D), not normalised."""
    items = {role: protocol.item_features(images) for role, images in embeddings.items()}
    return Study(protocol, embeddings, items)


class Drawings(NamedTuple):
    """Arrays for the figures; the report itself holds no scores."""

    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    scores: dict[str, np.ndarray]


def analyse(study: Study, far: float, resamples: int = 1000) -> tuple[dict, Drawings]:
    """The report as a dict of plain values, and what its figures need."""
    protocol, items = study.protocol, study.items
    first, second, genuine = protocol.pairs
    scores, tests = {}, {}
    for query, gallery in itertools.product(items, repeat=2):
        name = f"{query} / {gallery}"
        enrolled, probe = items[gallery], items[query]
        scores[name] = pair_scores(enrolled, probe, first, second)
        tests[name] = {"pairs": verification(scores[name], genuine)}
        if protocol.galleries:
            tests[name]["search"] = open_set(enrolled, probe, protocol.galleries, protocol.probes)
    old, cross, own = (scores[name] for name in study.selves[:3])
    report = {
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
        "compatibility": gains(study, scores, tests, far, resamples),
        "drift": drifts(old, cross, genuine),
        "flips": flips(study, scores, far),
        "backfill": backfilling(study, cross, own, tests, far),
        "label_free": signals(study),
    }
    report["verdict"] = verdict(report)
    curves = {
        name: roc_points(scores[name], genuine, max(1 / len(old), 1e-6)) for name in study.selves
    }
    return report, Drawings(curves, {name: scores[name] for name in study.selves[:2]})


def gains(study: Study, scores: dict, tests: dict, far: float, resamples: int) -> dict:
    """The criterion, update gain, price and P_up, P_comp, P_1, with intervals over subjects, or
    over pairs where the protocol does not say whose an item is."""
    first, second, genuine = study.protocol.pairs
    subjects, over = study.protocol.subjects, "subjects"
    units = np.arange(len(first)), np.arange(len(first))
    if subjects is None:
        over = "pairs"
    else:
        units = subjects[first], subjects[second]
    names = study.selves
    systems = np.stack([scores[name] for name in names])
    replicates = bootstrap_tar(systems, *units, genuine, (far,), resamples)[:, :, 0]
    tar = [tests[name]["pairs"]["tar"][rate_name(far)] for name in names]
    verdict = judged(f"TAR at FAR {rate_name(far)}", *tar)
    return {
        "tar": dict(zip(names, tar, strict=True)),
        "over": over,
        "differences": {
            name: interval(replicates[:, k] - replicates[:, 0], tar[k] - tar[0])._asdict()
            for k, name in enumerate(names)
            if k > 0
        },
        **verdict.figures(),
    }


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
            "far_ratio": or_none(point.far_ratio),
            "restored": point.restored.threshold,
            "restored_tar": point.restored.tar,
        }
        for point in threshold_drift(old, cross, genuine, resolved)
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
        pairs = pairs[np.argsort(-np.abs(change[pairs]), kind="stable")][:_EXAMPLES]
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
        "genuine": counts(found.genuine),
        "impostor": counts(found.impostor),
        "examples": examples,
    }


def counts(kind: Flips) -> dict:
    return {
        "pairs": kind.total,
        "negative": kind.negative,
        "positive": kind.positive,
        "relative": or_none(kind.relative),
    }


def backfilling(study: Study, cross: np.ndarray, own: np.ndarray, tests: dict, far: float) -> dict:
    """Backfill curves of 1:1 TAR for three orders, and how much is enough."""
    first, _, genuine = study.protocol.pairs
    gallery, row = np.unique(first, return_inverse=True)
    old, new = study.items["old"][gallery], study.items["new"][gallery]
    quality = backfill.pair_quality(cross, own, row, genuine, far)
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
    k = min(_NEIGHBOURS, len(gallery))
    before = old[probes], old[gallery]
    return {
        "cosine": float((old * new).sum(1).mean()),
        "procrustes_residual": label_free.procrustes_residual(new, old),
        "neighbours": k,
        "overlap": label_free.neighbour_overlap(*before, new[probes], old[gallery], k),
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
