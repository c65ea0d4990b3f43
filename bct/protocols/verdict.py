"""Is an upgrade compatible, what does it gain, what does it cost? Judged once, for every protocol.

q/g is a query by model q against a gallery by model g. The new model is compatible when its queries
do better in the old gallery than the old model's: new/old > old/old. "Alone" is the same network
trained without compatibility: what there was to gain, and what compatibility costs.
"""

import math
from typing import NamedTuple

import numpy as np

from bct import markdown
from bct.metrics import compatibility
from bct.metrics.percentiles import Interval, interval

ROUNDING = 1e-9  # means of equal figures may differ in their last bits
WORDS = {True: "compatible", False: "not compatible"}


class Verdict(NamedTuple):
    """Qualities of the tests in one unit, larger is better, and what follows from them.

    measure: what they are, e.g. "TAR at FAR 1e-4" or "mAP". old: old/old, cross: new/old,
    own: new/new, alone: the alone model with itself, None without one.
    interval: of cross - old; None where it was not asked for. over: what that is resampled over,
    "subjects", "templates", "pairs" or "classes". remark: what has to be said before anything is
    judged, such as that there is one genuine pair; "" if nothing has, see evidence.py.
    """

    measure: str
    old: float
    cross: float
    own: float
    alone: float | None = None
    interval: Interval | None = None
    over: str = ""
    remark: str = ""

    @property
    def compatible(self) -> bool:
        return compatibility.compatible(self.cross, self.old) and not self.tie

    @property
    def tie(self) -> bool:
        """Whether new queries do exactly as well as old ones; equal means may differ in their last
        bits."""
        return abs(self.cross - self.old) <= ROUNDING

    @property
    def gain(self) -> float | None:
        """Update gain; None without an alone model, or where there is nothing to gain."""
        return self.figures().get("update_gain")

    def figures(self) -> dict:
        """As JSON has it: criterion, interval and, with an alone model, gain, price, P_up, P_comp,
        P_1. What is undefined is null."""
        out: dict = {"compatible": self.compatible}
        if self.remark:
            out["remark"] = self.remark
        if self.interval is not None:
            out |= {"difference": self.interval._asdict(), "over": self.over}
        if self.alone is not None:
            old, cross, own, alone = self.old, self.cross, self.own, self.alone
            out |= {
                "update_gain": or_none(compatibility.update_gain(cross, old, alone)),
                "price": or_none(compatibility.price(own, alone)),
                "p_up": or_none(compatibility.p_up(own, alone)),
                "p_comp": or_none(compatibility.p_comp(cross, old, alone)),
                "p_1": or_none(compatibility.p_1(own, cross, old, alone)),
            }
        return out

    def sentence(self) -> str:
        """One line for people: the remark first, so that nobody reads past it."""
        return f"{self.remark} ({self._judgement()})" if self.remark else self._judgement()

    def _judgement(self) -> str:
        rate = self.measure.removeprefix("TAR at ")
        judgement = f"{WORDS[self.compatible]} {'by' if rate == self.measure else 'at'} {rate}"
        if self.tie:
            judgement += ", a tie"
        if self.interval is None:
            sign = ">" if self.compatible else "<="
            return f"{judgement} (cross {self.cross:.4f} {sign} old self {self.old:.4f})"
        low, high = self.interval.low, self.interval.high
        return (
            f"{judgement}: cross - old self {self.cross - self.old:+.4f}, "
            f"{interval_title(self.over)} {low:+.4f} to {high:+.4f}"
        )

    def table(self) -> str:
        """A Markdown table of the tests, and the sentence below it."""
        rows = [["old / old", self.old], ["new / old", self.cross], ["new / new", self.own]]
        if self.alone is not None:
            rows.append(["alone / alone", self.alone])
        titles = ["query / gallery", self.measure, "difference from old / old"]
        cells = [[name, f"{q:.4f}", f"{q - self.old:+.4f}"] for name, q in rows]
        cells[0][2] = ""
        return f"{markdown.table(titles, cells, padded=True)}\n\n{self.sentence()}"


def judged(
    measure: str,
    old: float,
    cross: float,
    own: float,
    alone: float | None = None,
    replicates: np.ndarray | None = None,
    over: str = "",
    remark: str = "",
) -> Verdict:
    """A verdict whose interval comes from bootstrap replicates of cross - old, (R,)."""
    found = None if replicates is None else interval(replicates, cross - old)
    return Verdict(measure, old, cross, own, alone, found, over, remark)


def interval_title(over: str) -> str:
    """What every table and page calls an interval: percentile bootstrap, resampled over these."""
    return f"95 % interval over {over}"


def or_none(value: float) -> float | None:
    """JSON has no NaN: an undefined figure is null."""
    return None if math.isnan(value) else float(value)
