"""What an upgrade brings, costs and risks, of any protocol; and the verdict in words."""

from bct.metrics.percentiles import Interval
from bct.metrics.scores import check_far
from bct.protocols.compare import check_judges, check_resolved
from bct.protocols.evidence import Evidence
from bct.protocols.protocol import Protocol
from bct.report.decision import AS_IT_IS, PARTLY, WHOLLY, Facts, Step, Threshold, decide
from bct.report.pairs import analyse_pairs
from bct.report.searches import analyse_searches
from bct.report.study import SHARES, Drawings, Measure, Study


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
    else:
        report, drawings = analyse_searches(study, resamples), None
    report["remarks"] = [*study.remarks, *report["remarks"]]
    report["verdict"] = decide(facts_of(report), thresholds_of(report))
    report["verdict"]["reasons"] += report["remarks"]
    return report, drawings


def facts_of(report: dict) -> Facts:
    """What the decision is made from."""
    measure, judged = Measure(**report["measure"]), report["compatibility"]
    qualities = [judged[measure.key][name] for name in ("old / old", "new / old", "new / new")]
    gaps = [Interval(**judged["differences"][name]) for name in ("new / old", "new / new")]
    step, cosine = report["backfill"]["step"], report["label_free"]["cosine"]
    if step is not None:
        gap = Interval(**step["difference"])
        step = Step(step["order"], step["share"], step["quality"], gap)
    return Facts(measure, *qualities, *gaps, Evidence(**report["evidence"]), cosine, step)


def thresholds_of(report: dict) -> dict[str, Threshold] | None:
    """Gallery -> what the deployed threshold does to it; None of searches, which have none."""
    if "drift" not in report:
        return None
    deployed = next(point for point in report["drift"] if point["far"] == report["far"])
    orders, step = report["backfill"]["orders"], report["backfill"]["step"]
    places = {AS_IT_IS: ("random", 0), WHOLLY: ("random", -1)}
    if step is not None:
        places[PARTLY] = step["order"], SHARES.tolist().index(step["share"])
    return {
        gallery: Threshold(
            deployed["threshold"],
            deployed["old_far"],
            *(orders[name][key][at] for key in ("threshold", "tar", "kept_tar", "kept_far")),
            later=max(orders[name]["kept_far"][at:]),
        )
        for gallery, (name, at) in places.items()
    }
