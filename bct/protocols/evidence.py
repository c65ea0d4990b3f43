"""What a verdict must know before it judges: are these two models, are there enough pairs, do the
spaces have anything in common, is any of it better than chance?"""

from typing import NamedTuple

import numpy as np

from bct.metrics.chance import alike_by_item, chance_ap
from bct.metrics.percentiles import Interval
from bct.metrics.relevance import positives
from bct.metrics.scores import rate_name
from bct.protocols.protocol import Protocol, Search
from bct.protocols.scoring import resolved
from bct.protocols.search_tests import query_units
from bct.rows import unit_rows

FEW, FEW_SUBJECTS = 10, 2  # with fewer genuine pairs or queries, or subjects, figures mean nothing
NEAR_CHANCE = 0.1  # of what the old system is above it: unrelated spaces may meet by accident
RELATED = 0.65  # of alike_by_item: 0.32 to 0.52 between unrelated spaces, 0.9 to 1 if compatible
_EQUAL = 1e-6  # 1 - cosine of one embedding that was stored in two precisions


class Evidence(NamedTuple):
    """same: old and new are the same embeddings. few: why the figures mean nothing, "" if they do
    not. alike: chance.alike_by_item of the two. lost: the new model can't be told from chance,
    in either gallery. unrelated: nor can new queries in the old gallery, and the spaces have
    nothing in common. chance: the quality that scores without any meaning have."""

    same: bool
    few: str
    alike: float
    chance: float
    lost: bool
    unrelated: bool

    @property
    def remark(self) -> str:
        """What has to be said before any judgement; "" if nothing has."""
        if self.same:
            return "old and new are the same embeddings"
        if self.few:
            return f"{self.few} only: the figures mean nothing"
        if self.lost:
            return "the new model can't be told from chance here"
        return "these spaces are unrelated: re-embed everything" if self.unrelated else ""


def evidence(
    protocol: Protocol,
    old: np.ndarray,
    new: np.ndarray,
    before: float,
    cross: Interval,
    own: Interval,
    far: float | None = None,
) -> Evidence:
    """Looks for what no figure shows.

    Args:
        old, new: float (T, D), of the protocol's items. before, cross, own: the qualities of
            old/old, new/old, new/new. far: of pairs.
    """
    alike, chance = alike_by_item(old, new), chance_level(protocol, far)
    at_chance = cross.low <= chance or cross.estimate - chance <= NEAR_CHANCE * (before - chance)
    return Evidence(
        same_embeddings(old, new),
        few(protocol),
        alike,
        chance,
        lost=bool(cross.low <= chance and own.low <= chance),
        unrelated=bool(at_chance and alike <= RELATED),
    )


def same_embeddings(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether all rows (N, D) of one are those of the other, lengths and rounding aside."""
    if old.shape != new.shape:
        return False
    for start in range(0, len(old), 1 << 13):
        a, b = (unit_rows(x[start : start + (1 << 13)]) for x in (old, new))
        if (np.square(a - b).sum(1) > 2 * _EQUAL).any():
            return False
    return True


def few(protocol: Protocol) -> str:
    """What there is too little of, e.g. "1 genuine pair"; "" if there is enough."""
    if protocol.pairs is not None:
        first, _, genuine = protocol.pairs
        number, one, many = int(np.count_nonzero(genuine)), "genuine pair", "genuine pairs"
        of = None if protocol.subjects is None else protocol.subjects[first[genuine]]
        units = ("subject", "subjects")
    else:
        found = _found(protocol.search)[0]
        number, one, many = int(np.count_nonzero(found)), "query", "queries"
        of, over = query_units(protocol)
        of = None if over == "queries" else of[found]
        units = ("class" if over == "classes" else over.removesuffix("s"), over)
    subjects = FEW_SUBJECTS if of is None else len(np.unique(of))
    if number >= FEW and subjects >= FEW_SUBJECTS:
        return ""
    said = f"{number} {one if number == 1 else many}"
    return said if of is None else f"{said} of {subjects} {units[subjects != 1]}"


def unjudged(protocol: Protocol, far: float) -> str:
    """Why pairs give no verdict at a FAR, a sentence; "" if they do."""
    genuine = protocol.pairs.genuine
    if not resolved(genuine, far):
        return (
            f"No verdict: FAR {rate_name(far)} allows no false accept among "
            f"{np.count_nonzero(~genuine):,} impostor pairs."
        )
    said = few(protocol)
    return f"No verdict: {said} only." if said else ""


def chance_level(protocol: Protocol, far: float | None) -> float:
    """The quality of scores without any meaning: TAR is then FAR, mAP that of a random order."""
    if protocol.pairs is not None:
        return far
    found, number, items = _found(protocol.search)
    if not found.any():
        return 1.0  # whatever they find, it is right
    return float(chance_ap(number[found], items[found], protocol.search.precision).mean())


def _found(search: Search) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each query: whether there is something to find and something to be wrong about, bool (Q,);
    how many items are positive; and how many it ranks, all but those it ignores, int64 (Q,)."""
    relevance = search.relevance
    number, items = positives(relevance), np.full(len(search.queries), len(search.gallery))
    if getattr(relevance, "ignored", None) is not None:
        items -= relevance.ignored.counts()
    items -= bool(getattr(relevance, "leave_one_out", False))
    return (number > 0) & (number < items), number, items
