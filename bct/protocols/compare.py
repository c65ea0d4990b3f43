"""The verdict on two models' embeddings of a protocol, in one call."""

from collections.abc import Mapping

import numpy as np

from bct.errors import BctError
from bct.metrics.bootstrap import bootstrap_tar
from bct.metrics.percentiles import interval
from bct.metrics.retrieval import bootstrap_means
from bct.metrics.scores import FARS, rate_name, tar_at_far
from bct.protocols.evidence import evidence
from bct.protocols.protocol import Protocol
from bct.protocols.scoring import resolved_by
from bct.protocols.search_tests import How, main_of, map_name, query_units, search, sides_of
from bct.protocols.templates import pair_scores
from bct.protocols.verdict import Verdict, judged
from bct.rows import check_rows, zeros_remark


def compare(
    protocol: Protocol,
    old: np.ndarray,
    new: np.ndarray,
    alone: np.ndarray | None = None,
    *,
    far: float = 1e-3,
    resamples: int = 1000,
) -> Verdict:
    """Is the new model backward-compatible with the old one, and what does it gain?

    Quality is TAR at a FAR where the protocol has pairs, else the mean average precision of its
    search. Compatible: new queries in the old gallery do better than old ones (Shen et al., CVPR
    2020). The interval is a percentile bootstrap over subjects, or over pairs where the protocol
    does not say whose an item is; of searches over classes, or over landmarks or persons, or over
    queries where nobody says what they show. Of several readings the first one decides.

    Args:
        protocol: of open_protocol. old, new: its images' embeddings by the two models, float
            (N, D), not normalised. alone: those of the new network trained without compatibility,
            by which gain and price are measured.
        far: false accept rate, 0..1. resamples: of the bootstrap.

    Returns:
        A Verdict with `compatible`, `interval`, `gain`, `figures()`, `sentence()`, `table()`, and
        a `remark` where the figures mean nothing or the spaces are unrelated.

    Raises:
        BctError: embeddings of other images or of two widths, not finite, all zeros or all alike;
            a far that allows no false accept.
    """
    check_judges(protocol)
    check_resamples(resamples)
    embeddings = {"old": old, "new": new} | ({} if alone is None else {"alone": alone})
    check_embeddings(protocol, embeddings)
    items = [protocol.item_features(rows) for rows in embeddings.values()]
    tests = [(items[0], items[0]), (items[1], items[0]), (items[1], items[1])]
    tests += [(items[2], items[2])] if alone is not None else []
    if protocol.pairs is not None:
        return _compare_pairs(protocol, tests, far, resamples)
    return _compare_searches(protocol, tests, resamples)


def _compare_pairs(protocol: Protocol, tests: list, far: float, resamples: int) -> Verdict:
    """tests: (queries' items, gallery's items) of old/old, new/old, new/new, alone/alone."""
    first, second, genuine = protocol.pairs
    check_resolved(protocol, far)
    scores = np.stack([pair_scores(gallery, query, first, second) for query, gallery in tests])
    tars = [float(tar_at_far(row, genuine, (far,))[0].tar) for row in scores]
    *units, over = pair_units(protocol)
    found = bootstrap_tar(scores[:3], *units, genuine, (far,), resamples)[:, :, 0]
    measure = f"TAR at FAR {rate_name(far)}"
    return _judged(protocol, tests, measure, tars, found, over, far)


def _compare_searches(protocol: Protocol, tests: list, resamples: int) -> Verdict:
    """tests: as of _compare_pairs."""
    asked, results = protocol.search, []
    for query, gallery in tests:
        sides = sides_of(asked, query)
        other = sides if query is gallery else sides_of(asked, gallery)
        found = search(asked, sides.query, other.gallery, How(way=asked.precision))
        results.append(main_of(found))
    found = results[0].rank > 0  # queries that have a positive
    values = np.stack([result.ap[found] for result in results])
    units, over = query_units(protocol)
    means = bootstrap_means(values[:3], units[found], resamples)
    return _judged(protocol, tests, map_name(asked), values.mean(1).tolist(), means, over)


def _judged(
    protocol: Protocol,
    tests: list,
    measure: str,
    qualities: list[float],
    replicates: np.ndarray,
    over: str,
    far: float | None = None,
) -> Verdict:
    """Args: replicates: of old/old, new/old, new/new, (R, 3)."""
    (_, old), (new, _) = tests[:2]
    cross, own = (interval(replicates[:, k], qualities[k]) for k in (1, 2))
    known = evidence(protocol, old, new, qualities[0], cross, own, far)
    gaps = replicates[:, 1] - replicates[:, 0]
    return judged(measure, *qualities, replicates=gaps, over=over, remark=known.remark)


def check_embeddings(protocol: Protocol, embeddings: Mapping[str, np.ndarray]) -> list[str]:
    """What has to be said of a protocol and its embeddings, role -> (N, D): what it leaves out, and
    which rows are zeros.

    Raises BctError: numbers of rows that are not those of the images; rows that are not finite, or
    all zeros, or all alike.
    """
    remarks = list(protocol.remarks)
    for role, rows in embeddings.items():
        if len(rows) != len(protocol.images):
            raise BctError(
                f"{len(rows)} {role} embeddings for {len(protocol.images)} images",
                f"give one row per image of {protocol.name}, in its order",
            )
        whose = f"the {role} embeddings"
        zeros = check_rows(rows, whose)
        if len(zeros):
            remarks.append(zeros_remark(whose, zeros, len(rows)))
    return remarks


def check_resamples(resamples: int) -> None:
    """Raises BctError for a bootstrap without a resample."""
    if resamples < 1:
        raise BctError(f"resamples is {resamples}", "give at least 1")


def check_judges(protocol: Protocol) -> None:
    """Raises BctError for a protocol by which no model can be judged."""
    if protocol.pairs is None and protocol.search is None:
        raise BctError(
            f"{protocol.name} has neither pairs nor a search",
            "give a protocol with one of them: what else should the models be judged by?",
        )


def check_resolved(protocol: Protocol, far: float) -> None:
    """Raises BctError for a FAR that these pairs do not resolve, or if no pair is genuine."""
    if not 0 < far < 1:
        raise BctError(f"far is {far}, no rate", "give one between 0 and 1, such as 1e-3")
    genuine = protocol.pairs.genuine
    impostors = int(np.count_nonzero(~genuine))
    if not resolved_by(impostors, far):
        raise BctError(
            f"FAR {rate_name(far)} allows no false accept among {impostors} impostor pairs",
            resolved_advice(impostors),
        )
    if impostors == len(genuine):
        raise BctError(
            f"{protocol.name} has impostor pairs only: TAR is undefined",
            "give a protocol with pairs of both kinds",
        )


def resolved_advice(impostors: int) -> str:
    """What to give where so many impostor pairs do not resolve a FAR."""
    smallest = next((far for far in FARS if resolved_by(impostors, far)), None)
    if smallest is None:
        return "give a larger protocol: so few resolve no FAR of the tables"
    return f"give {rate_name(smallest)}, the smallest that they resolve, or a larger protocol"


def pair_units(protocol: Protocol) -> tuple[np.ndarray, np.ndarray, str]:
    """What an interval of 1:1 figures is over: the unit of each pair's two sides, (P,), and its
    name. Subjects where the protocol says whose an item is, else the pairs themselves."""
    first, second, _ = protocol.pairs
    if protocol.subjects is None:
        pair = np.arange(len(first))
        return pair, pair, "pairs"
    return protocol.subjects[first], protocol.subjects[second], "subjects"
