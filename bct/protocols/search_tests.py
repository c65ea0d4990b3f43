"""Searches on image sets: which tests there are, and their figures as plain values.

A protocol may have several readings of what is relevant (easy, medium, hard). All are searched in
one pass; the first one decides, the others are parts of their own.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bct.metrics import chain
from bct.metrics.relevance import ByClass, positives, unopposed
from bct.metrics.retrieval import (
    Retrieval,
    bootstrap_means,
    by_class,
    check_ks,
    cmc,
    of_queries,
    retrieve_readings,
)
from bct.models.widths import check_meet, same_width
from bct.protocols.protocol import Protocol, Search
from bct.protocols.refined import Refine, refined_readings
from bct.protocols.roles import Roles, Test, test_name
from bct.protocols.verdict import judged

EVERY, OLD, NEW = "all queries", "queries of old classes", "queries of new classes"
DEPTH = 20  # of the CMC

Readings = Mapping[str, Retrieval]  # results by reading, the one that decides first


class Sides(NamedTuple):
    """A model's embeddings (Q, D), (G, D); one and the same array where each image is both."""

    query: np.ndarray
    gallery: np.ndarray


def sides_of(search: Search, embeddings: np.ndarray) -> Sides:
    """Both sides of a protocol's embeddings (N, D), which are not copied where that can be."""
    query = _chosen(embeddings, search.queries)
    same = search.queries is search.gallery
    return Sides(query, query if same else _chosen(embeddings, search.gallery))


def _chosen(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if not np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return embeddings[rows]
    whole = len(rows) == len(embeddings)
    return embeddings if whole else embeddings[rows[0] : rows[0] + len(rows)]


class How(NamedTuple):
    """metric: of bct.metrics.retrieval. dimensions: of bct.models.widths. ks: which top-k.

    way: how the protocol reckons an average precision, see Search. refine: what is done beside
    plain ranking.
    """

    metric: str = "cosine"
    dimensions: str = "equal"
    ks: tuple[int, ...] = (1, 5)
    way: str = "steps"
    refine: Refine = Refine()

    @property
    def qualities(self) -> list[str]:
        """By which tests are compared: top1, ... (of Revisited Oxford and Paris mp1, ...), map."""
        kind = "mp" if self.way == "trapezoid" else "top"
        return [*(f"{kind}{k}" for k in self.ks), "map"]

    @property
    def ranked(self) -> list[str]:
        """The qualities of a backfill's curves."""
        return [*(f"top{k}" for k in self.ks), "map"]


def check_tests(widths: Mapping[str, int], roles: Roles, how: How) -> None:
    """Raises BctError for what run_tests would refuse once everything is embedded.

    Args:
        widths: of each model's embeddings, by label.
    """
    check_ks(how.ks, how.way)
    for test in roles.tests():
        if test != (roles.alone, roles.old):
            check_meet(how.dimensions, *(widths[label] for label in test))


def run_tests(
    asked: Search, sides: Mapping[str, Sides], roles: Roles, how: How
) -> tuple[dict[Test, Readings], list[str]]:
    """All tests' results, and which test is left out."""
    results, left_out = {}, []
    for test in roles.tests():
        both = sides[test[0]].query, sides[test[1]].gallery
        widths = [x.shape[1] for x in both]
        only_shown = test == (roles.alone, roles.old)
        if only_shown and how.dimensions == "equal" and widths[0] != widths[1]:
            name = test_name(test)
            left_out.append(f"{name} is left out: {widths[0]} and {widths[1]} dimensions.")
            continue
        results[test] = search(asked, *both, how)
    return results, left_out


def search(asked: Search, query: np.ndarray, gallery: np.ndarray, how: How) -> Readings:
    """Queries (Q, D) against a gallery (G, D'), which may be another model's."""
    same = query is gallery  # before they are cut: half of the products are enough
    query, gallery = same_width(how.dimensions, query, gallery)
    gallery = query if same else gallery
    if how.refine.ranks:
        return refined_readings(query, gallery, asked.by_reading, how.ks, how.way, how.refine)
    return retrieve_readings(query, gallery, asked.by_reading, how.metric, how.ks, how.way)


def map_name(asked: Search) -> str:
    """What its mean average precision is called."""
    return "mAP@100" if asked.precision == "first100" else "mAP"


def main_of(results: Readings) -> Retrieval:
    """By the reading that decides."""
    return next(iter(results.values()))


class Part(NamedTuple):
    """What figures are of: chosen queries, bool (Q,), by a reading."""

    chosen: np.ndarray
    reading: str


def parts_of(asked: Search, old: np.ndarray | None) -> dict[str, Part]:
    """All queries by the reading that decides; those of old and of new classes, unless there are
    none that could be found; all by the other readings.

    Args:
        old: bool (C,), which labels are old classes; None if that is not known.
    """
    (main, relevance), *others = asked.by_reading.items()
    every = np.ones(len(asked.queries), bool)
    parts = {EVERY: Part(every, main)}
    if old is not None:
        findable = (positives(relevance) > 0) & ~unopposed(relevance, len(asked.gallery))
        of_old = old[relevance.query]
        by_age = {OLD: of_old, NEW: ~of_old}
        parts |= {
            part: Part(chosen, main) for part, chosen in by_age.items() if (chosen & findable).any()
        }
    return parts | {reading: Part(every, reading) for reading, _ in others}


def query_units(protocol: Protocol) -> tuple[np.ndarray, str]:
    """What an interval of a search's figures is over: the unit of each query, (Q,), and its name.

    Classes, or what else the protocol's subjects are. Where relevance is by item and nobody says
    what a query shows, the query itself.
    """
    asked = protocol.search
    if isinstance(asked.relevance, ByClass):
        return asked.relevance.query, protocol.unit
    each = np.arange(len(asked.queries))
    known = None if protocol.subjects is None else protocol.subjects[asked.queries]
    if known is None or (known < 0).all():
        return each, "queries"
    return np.where(known < 0, -1 - each, known), protocol.unit


def gallery_classes(protocol: Protocol) -> np.ndarray | None:
    """What each gallery item is or shows, int64 (G,), below 0 where it is not known; None if
    nobody says."""
    asked = protocol.search
    if isinstance(asked.relevance, ByClass):
        return asked.relevance.gallery
    return None if protocol.subjects is None else protocol.subjects[asked.gallery]


def figures(
    results: Readings,
    parts: Mapping[str, Part],
    labels: np.ndarray | None = None,
    names: list[str] | None = None,
) -> dict:
    """One test: top1, ..., mp1, ..., map and the numbers of queries of each part; the CMC of all.

    Args:
        labels: (Q,), the queries', for figures of each class; None: without. names: by label.
    """
    out, result = {}, main_of(results)
    for part, (chosen, reading) in parts.items():
        found = of_queries(results[reading], chosen)
        top = {f"top{k}": share for k, share in found.top.items()}
        top |= {f"mp{k}": share for k, share in found.mean_precision.items()}
        counts = {
            "queries": found.queries,
            "without": found.without,
            "unopposed": found.unopposed,
        }
        out[part] = {**top, "map": found.mean_ap, **counts}
    out["cmc"] = cmc(result, DEPTH).tolist()
    if labels is not None:
        each = by_class(result, labels)
        columns = {"queries": each.queries}
        columns |= {f"top{k}": shares for k, shares in each.top.items()} | {"map": each.mean_ap}
        out["classes"] = {
            names[label] if names and label >= 0 else str(label): {
                key: values[row].item() for key, values in columns.items()
            }
            for row, label in enumerate(each.labels.tolist())
        }
    return out


def per_query(result: Retrieval, quality: str) -> np.ndarray:
    """What the quality is the mean of, float64 (Q,)."""
    if quality == "map":
        return result.ap
    if quality.startswith("mp"):
        return result.precision[_k(quality)]
    return (result.rank <= _k(quality)).astype(np.float64)


def mean_of(result: Retrieval, quality: str) -> float:
    """A quality of all queries, one that a backfill has."""
    return result.mean_ap if quality == "map" else result.top[_k(quality)]


def _k(quality: str) -> int:
    return int(quality.removeprefix("top").removeprefix("mp"))


def compatible(
    tests: Sequence[Retrieval],
    units: tuple[np.ndarray, str],
    chosen: np.ndarray,
    how: How,
    resamples: int,
) -> dict:
    """Quality -> the figures of its verdict.

    Args:
        tests: of the same queries: old/old, new/old, new/new and, if there is one, alone/alone.
        units: see query_units. chosen: bool (Q,), which queries.
    """
    labels, over = units
    found = chosen & (tests[0].rank > 0)
    out = {}
    for quality in how.qualities:
        values = np.stack([per_query(test, quality)[found] for test in tests])
        means = bootstrap_means(values[:2], labels[found], resamples)
        gap = means[:, 1] - means[:, 0]
        qualities = values.mean(1).tolist()
        out[quality] = judged(quality, *qualities, replicates=gap, over=over).figures()
    return out


def chain_figures(versions: list[str], tests: Mapping[Test, dict], how: How) -> dict:
    """Quality -> matrix of all queries, [query version][gallery version], and what chain says."""
    out = {}
    for quality in how.qualities:
        matrix = [[tests[q, g][EVERY][quality] for g in versions] for q in versions]
        out[quality] = {
            "matrix": matrix,
            "average_compatibility": chain.average_compatibility(np.array(matrix)),
            "average_quality": chain.average_quality(np.array(matrix)),
            "backward_transfer": chain.backward_transfer(np.array(matrix)),
            "forward_transfer": chain.forward_transfer(np.array(matrix)),
        }
    return out


def measured(
    results: Mapping[Test, Readings],
    roles: Roles,
    how: How,
    parts: Mapping[str, Part],
    units: tuple[np.ndarray, str],
    resamples: int,
    names: list[str] | None = None,
    per_class: bool = False,
) -> dict:
    """What results have to say: tests and, where the roles ask for it, chain or compatibility.

    Args:
        units: which intervals are over, see query_units. names: of its classes.
        per_class: figures of each class, too.
    """
    of_class = units[0] if per_class else None
    tests = {test: figures(result, parts, of_class, names) for test, result in results.items()}
    out = {"tests": {test_name(test): found for test, found in tests.items()}}
    if roles.chain:
        out["chain"] = chain_figures(roles.versions, tests, how)
    if roles.old is not None:
        out["compatibility"] = {
            label: {
                part: compatible(
                    [results[test][reading] for test in roles.compared(label)],
                    units, chosen, how, resamples,
                )
                for part, (chosen, reading) in parts.items()
            }
            for label in roles.new
        }  # fmt: skip
    return out
