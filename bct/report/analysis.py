"""What an upgrade brings, costs and risks, of any protocol; and the verdict in words."""

from collections.abc import Mapping

from bct.metrics.percentiles import Interval
from bct.metrics.scores import check_far
from bct.protocols.compare import check_judges, check_resolved
from bct.protocols.protocol import Protocol
from bct.report.pairs import analyse_pairs
from bct.report.searches import analyse_searches
from bct.report.study import Drawings, Measure, Study

MUCH_DRIFT = 1.5  # times the agreed false accepts


def check_protocol(protocol: Protocol, far: float) -> None:
    """Raises BctError for a protocol that no report can be made of, or not at this FAR."""
    check_judges(protocol)
    if protocol.pairs is not None:
        check_far(far)
        check_resolved(protocol, far)


def analyse(study: Study, far: float, resamples: int = 1000) -> tuple[dict, Drawings | None]:
    """The report as a dict of plain values, and what the figures of pairs need.

    A protocol that has pairs is judged by them, by TAR at `far`; otherwise by its search, by mAP.

    Raises BctError like check_protocol.
    """
    protocol = study.protocol
    check_protocol(protocol, far)
    if protocol.pairs is not None:
        report, drawings = analyse_pairs(study, far, resamples)
        drift = next(point for point in report["drift"] if point["far"] == far)
    else:
        report, drawings, drift = analyse_searches(study, resamples), None, None
    measure, judged = Measure(**report["measure"]), report["compatibility"]
    enough = {name: order["enough_for_old"] for name, order in report["backfill"]["orders"].items()}
    gap = Interval(**judged["differences"]["new / old"])
    report["verdict"] = decide(measure, judged[measure.key], gap, enough, drift)
    return report, drawings


def decide(
    measure: Measure,
    qualities: Mapping[str, float],
    gap: Interval,
    enough: Mapping[str, float | None],
    drift: Mapping[str, float | None] | None = None,
) -> dict:
    """May the new model serve the old gallery? A decision and its reasons, in words.

    Args:
        qualities: of old/old, new/old and new/new, by name. gap: of new/old from old/old.
        enough: order -> which share, re-extracted, makes it as good as the old system; None: none.
        drift: at the deployed threshold, see pairs.drifts; None where none is deployed.
    """
    before, cross, own = (qualities[name] for name in ("old / old", "new / old", "new / new"))
    reachable = {name: share for name, share in enough.items() if share is not None}
    reasons = [
        f"With the old gallery untouched, new queries reach {measure.of(cross)}; "
        f"the old system has {before:.3f} (difference {gap.estimate:+.3f}, 95 % interval "
        f"{gap.low:+.3f} to {gap.high:+.3f}).",
        f"With the whole gallery re-extracted they reach {own:.3f}.",
    ]
    if own <= before and cross <= before:
        decision, headline = "do not", "Do not deploy: the new model is no better than the old one"
    elif cross > before:
        decision = "deploy now"
        sure = "" if gap.low > 0 else ", though the difference is within the uncertainty"
        headline = f"Deploy now: the old gallery can stay as it is{sure}"
    elif reachable and min(reachable.values()) < 1:
        name = min(reachable, key=reachable.get)
        decision = "backfill first"
        headline = f"Deploy and backfill {100 * reachable[name]:.0f} % of the gallery first"
        reasons.append(f"In the order “{name}”, that much brings it to the old system's quality.")
    else:
        decision, headline = "do not", "Do not deploy until the whole gallery is re-extracted"
    if drift is not None:
        reasons.append(_threshold(measure, before, cross, drift))
    if decision == "deploy now" and reasons[-1].startswith("Change"):
        headline = headline.replace("Deploy now", "Deploy now, with a new threshold", 1)
    return {"decision": decision, "headline": headline, "reasons": reasons}


def _threshold(measure: Measure, before: float, cross: float, drift: Mapping) -> str:
    """Whether the deployed threshold can stay."""
    moved = f"from {drift['threshold']:.3f} to {drift['restored']:.3f}"
    if drift["far_ratio"] is None:
        return "Whether the deployed threshold can stay can't be told at so low a FAR."
    if drift["far_ratio"] > MUCH_DRIFT:
        return (
            f"Change the threshold {moved}: at the old one, false accepts are "
            f"{drift['far_ratio']:.1f} times as many as before."
        )
    if drift["new_tar"] < before <= cross:
        return (
            f"Change the threshold {moved}: at the old one, new queries reach {measure.name} "
            f"{drift['new_tar']:.3f} only, less than the old system."
        )
    return f"The deployed threshold {drift['threshold']:.3f} can stay."
