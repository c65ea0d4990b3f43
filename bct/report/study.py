"""What a report is made from, and the figures that reports of pairs and of searches share.

q/g is a query by model q against a gallery by model g; roles are "old", "new" and "alone".
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bct.metrics import backfill
from bct.metrics.flips import Flips
from bct.metrics.percentiles import Interval, interval
from bct.protocols.compare import check_embeddings
from bct.protocols.evidence import Evidence, evidence
from bct.protocols.protocol import Protocol
from bct.protocols.verdict import ROUNDING, judged, or_none

SHARES = np.linspace(0, 1, 21)  # of the gallery, re-extracted
EPS = 0.005  # a share is enough when its quality is this near to the goal
NEIGHBOURS = 10
EXAMPLES = 8
RANDOM_ORDERS = 3  # a curve is the mean over them
DISAGREEMENT = "old and new disagree most first"  # needs every new embedding: a bound


def signed(value: float) -> str:
    """A difference with its sign, and never -0.000."""
    return f"{round(value, 3) + 0:+.3f}"


class Measure(NamedTuple):
    """What a report judges by. key: in the report's dicts; at: e.g. "FAR 1e-4", or None."""

    key: str
    name: str
    at: str | None = None

    @property
    def words(self) -> str:
        return self.name + self._at()

    def of(self, value: float) -> str:
        """E.g. "TAR 0.812 at FAR 1e-4"."""
        return f"{self.name} {value:.3f}{self._at()}"

    def _at(self) -> str:
        return f" at {self.at}" if self.at else ""


class Study(NamedTuple):
    """What a report is made from.

    images: role -> embeddings of the images (N, D); items: role -> of the items (T, D), unit where
    the protocol has pairs or templates. Roles are "old", "new" and, if there is one, "alone".
    remarks: what has to be said of them, see compare.check_embeddings.
    """

    protocol: Protocol
    images: Mapping[str, np.ndarray]
    items: Mapping[str, np.ndarray]
    remarks: Sequence[str] = ()

    @classmethod
    def of(cls, protocol: Protocol, embeddings: Mapping[str, np.ndarray]) -> "Study":
        """Of embeddings of the protocol's images by role, (N, D), not normalised.

        Raises BctError as compare.check_embeddings.
        """
        remarks = check_embeddings(protocol, embeddings)
        if protocol.pairs is None and protocol.templates is None:
            # a search scales them itself, in blocks
            return cls(protocol, embeddings, embeddings, remarks)
        items = {role: protocol.item_features(images) for role, images in embeddings.items()}
        return cls(protocol, embeddings, items, remarks)

    @property
    def tests(self) -> list[tuple[str, str]]:
        """(query role, gallery role): all of them."""
        return list(itertools.product(self.items, repeat=2))

    @property
    def selves(self) -> list[str]:
        """The tests that are compared: old/old, new/old, new/new, alone/alone if there is one."""
        names = ["old / old", "new / old", "new / new"]
        return names + ["alone / alone"] * ("alone" in self.items)


class Order(NamedTuple):
    """An order of a backfill.

    ways: permutations of the gallery (N,), over which its curve is the mean. available: whether it
    can be had before anything is re-extracted. One that can't is a bound and is never recommended.
    """

    ways: list[np.ndarray]
    available: bool = True


class Drawings(NamedTuple):
    """Arrays for the figures of pairs; the report itself holds no scores.

    curves: test -> ROC, (FAR, TAR); scores: test -> float (P,); genuine: bool (P,).
    """

    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    scores: dict[str, np.ndarray]
    genuine: np.ndarray


def gains(measure: Measure, values: Mapping[str, float], replicates: np.ndarray, over: str) -> dict:
    """The criterion, update gain, price and P_up, P_comp, P_1, and differences with intervals.

    Args:
        values: test -> its quality, in the order of Study.selves; replicates: of them, (R, K);
        over: what these are resampled over.
    """
    names, qualities = list(values), list(values.values())
    differences = {
        name: interval(replicates[:, k] - replicates[:, 0], qualities[k] - qualities[0])._asdict()
        for k, name in enumerate(names)
        if k > 0
    }
    return {
        measure.key: dict(values),
        "over": over,
        "differences": differences,
        **judged(measure.words, *qualities).figures(),
    }


def look(
    study: Study, values: Mapping[str, float], replicates: np.ndarray, far: float | None = None
) -> Evidence:
    """What a verdict must know before it judges. Args: as gains; far: of pairs."""
    old, new = (study.items[role] for role in ("old", "new"))
    cross, own = (interval(replicates[:, k], values[study.selves[k]]) for k in (1, 2))
    return evidence(study.protocol, old, new, values["old / old"], cross, own, far)


def curve_figures(
    measure: Measure, curves: Sequence[np.ndarray], before: float, after: float, available: bool
) -> dict:
    """An order's backfill curve, the mean of several (B,) at SHARES, and how much is enough."""
    curve = backfill.Curve(SHARES, np.mean(curves, axis=0))
    return {
        "available": available,
        measure.key: curve.values.tolist(),
        **backfill.figures(curve),
        "enough_for_all_new": backfill.lasting_fraction(curve, after, EPS),
        "enough_for_old": backfill.lasting_fraction(curve, before, ROUNDING),
    }


def first_enough(orders: Mapping[str, Mapping]) -> tuple[str, int] | None:
    """The order that needs least to be as good as the old system, of those that can be had, and at
    which of SHARES; None if that is nothing or all.

    Args:
        orders: name -> curve_figures.
    """
    enough = {
        name: order["enough_for_old"]
        for name, order in orders.items()
        if order["available"] and order["enough_for_old"] is not None
    }
    if not enough or not 0 < min(enough.values()) < 1:
        return None
    name = min(enough, key=enough.get)
    return name, int(np.searchsorted(SHARES, enough[name]))


def step(name: str, at: int, quality: float, gap: Interval) -> dict:
    """Where a backfill is as good as the old system, as JSON has it. Args: see first_enough."""
    return {
        "order": name,
        "share": float(SHARES[at]),
        "quality": quality,
        "difference": gap._asdict(),
    }


def counts(found: Flips, of: str) -> dict:
    """Args: of: what is counted, "pairs" or "queries"."""
    return {
        of: found.total,
        "negative": found.negative,
        "positive": found.positive,
        "relative": or_none(found.relative),
    }
