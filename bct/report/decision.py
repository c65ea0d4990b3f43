"""May the new model serve the old gallery? The table of verdicts: the first row that holds decides.

Each row says which gallery it recommends, and the threshold is judged for that one.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from bct.metrics.percentiles import Interval
from bct.protocols.evidence import Evidence
from bct.protocols.verdict import ROUNDING
from bct.report.study import EPS, Measure, signed

MUCH_DRIFT = 1.5  # times the agreed false accepts
AS_IT_IS, PARTLY, WHOLLY = "as it is", "partly", "wholly"  # re-extracted


class Step(NamedTuple):
    """The smallest part of a backfill after which new queries do as well as the old system.

    order: of those that can be had before anything is re-extracted. quality: what it reaches;
    gap: its difference from old/old.
    """

    order: str
    share: float
    quality: float
    gap: Interval


class Threshold(NamedTuple):
    """What the deployed threshold does to the gallery that is recommended.

    deployed: it; far: what the old system reaches there. restored, tar: the threshold for the FAR
    that was agreed, and TAR at it. kept_tar, kept_far: at the deployed one. later: the highest FAR
    there from now on, while the rest is re-extracted.
    """

    deployed: float
    far: float
    restored: float
    tar: float
    kept_tar: float
    kept_far: float
    later: float = 0.0


class Facts(NamedTuple):
    """before, cross, own: quality of old/old, new/old, new/new. gap, gain: of new/old and new/new
    from old/old. step: None if no order is as good before all is re-extracted."""

    measure: Measure
    before: float
    cross: float
    own: float
    gap: Interval
    gain: Interval
    known: Evidence
    cosine: float
    step: Step | None = None


class Row(NamedTuple):
    """A row of the table. gallery: the one that is recommended, None: none is."""

    when: str
    holds: Callable[[Facts], bool]
    decision: str
    headline: Callable[[Facts], str]
    gallery: str | None = None


def _more(a: float, b: float) -> bool:
    return a - b > ROUNDING


def _better(facts: Facts) -> bool:
    """Whether the new model is better than the old one once all is re-extracted."""
    return _more(facts.own, facts.before)


def _compatible(facts: Facts) -> bool:
    return _more(facts.cross, facts.before)


def _tie(facts: Facts) -> bool:
    return not _compatible(facts) and not _more(facts.before, facts.cross)


def _unsure(gap: Interval) -> str:
    return "" if gap.low > 0 else ", though the difference is within the uncertainty"


TABLE = (
    Row(
        "old and new are the same embeddings",
        lambda f: f.known.same,
        "no verdict",
        lambda f: "Nothing to decide: old and new are the same embeddings",
    ),
    Row(
        "too few genuine pairs, queries or subjects",
        lambda f: bool(f.known.few),
        "no verdict",
        lambda f: f"No verdict: {f.known.few} only, so the figures mean nothing",
    ),
    Row(
        "new queries do no better than chance in either gallery",
        lambda f: f.known.lost,
        "do not",
        lambda f: "Do not deploy: the new model can't be told from chance on this set",
    ),
    Row(
        "unrelated spaces, and the new model is no better",
        lambda f: f.known.unrelated and not _better(f),
        "do not",
        lambda f: "Do not deploy: these spaces are unrelated, and the new model is no better",
    ),
    Row(
        "unrelated spaces",
        lambda f: f.known.unrelated,
        "do not",
        lambda f: f"These spaces are unrelated: re-embed everything{_unsure(f.gain)}",
        WHOLLY,
    ),
    Row(
        "better in the old gallery, no better in a new one",
        lambda f: _compatible(f) and not _better(f),
        "deploy now",
        lambda f: (
            "Deploy now{anew}, and leave the gallery as it is: re-extracted it is no better "
            f"than before{_unsure(f.gap)}"
        ),
        AS_IT_IS,
    ),
    Row(
        "better in the old gallery",
        _compatible,
        "deploy now",
        lambda f: f"Deploy now{{anew}}: the old gallery can stay as it is{_unsure(f.gap)}",
        AS_IT_IS,
    ),
    Row(
        "as good in the old gallery, no better in a new one",
        lambda f: _tie(f) and not _better(f),
        "do not",
        lambda f: "Do not deploy: a tie, the new model is no better than the old one",
    ),
    Row(
        "as good in the old gallery",
        _tie,
        "tie",
        lambda f: "A tie{anew}: in the old gallery new queries do as well as old ones, no better",
        AS_IT_IS,
    ),
    Row(
        "no better in a new gallery",
        lambda f: not _better(f),
        "do not",
        lambda f: "Do not deploy: the new model is no better than the old one",
    ),
    Row(
        "as good once a part is re-extracted, in an order that can be had",
        lambda f: f.step is not None,
        "backfill first",
        lambda f: (
            f"Deploy and backfill {100 * f.step.share:.0f} % of the gallery first{{anew}}"
            f"{_unsure(f.step.gap)}"
        ),
        PARTLY,
    ),
    Row(
        "anything else",
        lambda f: True,
        "do not",
        lambda f: f"Do not deploy until the whole gallery is re-extracted{_unsure(f.gain)}",
        WHOLLY,
    ),
)


def decide(facts: Facts, thresholds: Mapping[str, Threshold] | None = None) -> dict:
    """A decision, its headline and its reasons, in words.

    Args:
        thresholds: gallery -> what the deployed threshold does to it, AS_IT_IS and WHOLLY, and
            PARTLY where there is a step; None where no threshold is deployed.
    """
    row = next(row for row in TABLE if row.holds(facts))
    change, reasons = False, _reasons(facts, row)
    if thresholds is not None and row.gallery is not None:
        change, said = _threshold(facts, thresholds[row.gallery])
        reasons.append(said)
    headline = row.headline(facts).replace("{anew}", ", with a new threshold" if change else "")
    return {
        "decision": row.decision,
        "when": row.when,
        "headline": headline,
        "gallery": row.gallery,
        "reasons": reasons,
    }


def _reasons(facts: Facts, row: Row) -> list[str]:
    measure, known = facts.measure, facts.known
    reasons = [
        f"With the old gallery untouched, new queries reach {measure.of(facts.cross)}; "
        f"the old system has {facts.before:.3f} ({_of(facts.gap)}).",
        f"With the whole gallery re-extracted they reach {facts.own:.3f} ({_of(facts.gain)}).",
    ]
    if row.gallery == PARTLY:
        step = facts.step
        reasons.append(
            f"In the order “{step.order}”, {100 * step.share:.0f} % brings it to "
            f"{measure.of(step.quality)} ({_of(step.gap)}), the old system's quality."
        )
    if known.unrelated and not (known.same or known.few):
        reasons.append(
            f"Old and new embeddings of one item have a mean cosine of {facts.cosine:.3f}, and it "
            f"is above that of two different items in {100 * known.alike:.0f} % of cases (about 50 "
            "% by chance): a part of the gallery, an order or a threshold can't help. A map "
            "between the spaces may, see tools/transform_gallery.py."
        )
    return reasons


def _of(gap: Interval) -> str:
    estimate, low, high = map(signed, gap)
    return f"difference {estimate}, 95 % interval {low} to {high}"


def _threshold(facts: Facts, at: Threshold) -> tuple[bool, str]:
    """Whether the deployed threshold has to change, and a sentence on it."""
    moved = f"Change the threshold from {at.deployed:.3f} to {at.restored:.3f}: at the old one"
    name = facts.measure.name
    if at.far == 0:
        return False, "Whether the deployed threshold can stay can't be told at so low a FAR."
    ratio, later = at.kept_far / at.far, at.later / at.far  # to the false accepts before
    if ratio > MUCH_DRIFT:
        return True, f"{moved}, false accepts are {ratio:.1f} times as many as before."
    if _more(facts.before, at.kept_tar):
        return True, (
            f"{moved}, new queries reach {name} {at.kept_tar:.3f} only, less than the old system; "
            f"at the new one {at.tar:.3f}."
        )
    said = f"The deployed threshold {at.deployed:.3f} can stay: at it new queries reach {name} "
    said += f"{at.kept_tar:.3f} at FAR {at.kept_far:.1e}"
    if _more(at.tar - EPS, at.kept_tar):
        said += f"; {name} {at.tar:.3f} needs the threshold {at.restored:.3f}"
    if later > MUCH_DRIFT:
        said += (
            f". Set it anew when more is re-extracted: false accepts would become {later:.1f} "
            "times as many as before"
        )
    return False, f"{said}."
