"""The figures of a retrieval test as plain values: searches, compatibility, chain, backfill."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bct.metrics import backfill, chain, compatibility
from bct.metrics.bootstrap import interval
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass, Relevance, positives
from bct.metrics.retrieval import (
    Retrieval,
    bootstrap_means,
    by_class,
    cmc,
    of_queries,
    retrieve,
)
from bct.models.widths import same_width
from bct.protocols.items import Items, Sides

EVERY, OLD, NEW = "all queries", "queries of old classes", "queries of new classes"
SHARES = np.linspace(0, 1, 11)  # of the gallery, refreshed
DEPTH = 20  # of the CMC


class How(NamedTuple):
    """metric: of bct.metrics.retrieval. dimensions: of bct.models.widths. ks: which top-k."""

    metric: str = "cosine"
    dimensions: str = "equal"
    ks: tuple[int, ...] = (1, 5)

    @property
    def qualities(self) -> list[str]:
        return [*(f"top{k}" for k in self.ks), "map"]


def relevance_of(items: Items) -> Relevance:
    """Items of the query's class; where there is one set, all but the query itself."""
    return ByClass(items.query_labels, items.gallery_labels, items.leave_one_out)


def search(items: Items, query: np.ndarray, gallery: np.ndarray, how: How) -> Retrieval:
    """Queries (Q, D) against a gallery (G, D'), which may be another model's."""
    same = query is gallery  # before they are cut: half of the products are enough
    query, gallery = same_width(how.dimensions, query, gallery)
    return retrieve(query, query if same else gallery, relevance_of(items), how.metric, how.ks)


def parts_of(items: Items, old: np.ndarray | None) -> dict[str, np.ndarray]:
    """Part -> which queries, bool (Q,): all, and those of old and of new classes, unless there are
    none that could be found.

    Args:
        old: bool (C,), which labels are old classes; None if that is not known.
    """
    parts = {EVERY: np.ones(len(items.query_labels), bool)}
    if old is not None:
        findable = positives(relevance_of(items)) > 0
        of_old = old[items.query_labels]
        parts |= {OLD: of_old, NEW: ~of_old}
        parts = {part: chosen for part, chosen in parts.items() if (chosen & findable).any()}
    return parts


def figures(
    items: Items, parts: dict[str, np.ndarray], result: Retrieval, per_class: bool = False
) -> dict:
    """One test: top1, ..., map and the numbers of queries of each part; the CMC of all."""
    out = {}
    for part, chosen in parts.items():
        found = of_queries(result, chosen)
        top = {f"top{k}": share for k, share in found.top.items()}
        counts = {"queries": found.queries, "without": found.without}
        out[part] = {**top, "map": found.mean_ap, **counts}
    out["cmc"] = cmc(result, DEPTH).tolist()
    if per_class:
        each = by_class(result, items.query_labels)
        columns = {"queries": each.queries}
        columns |= {f"top{k}": shares for k, shares in each.top.items()} | {"map": each.mean_ap}
        out["classes"] = {
            items.names[label] if items.names else str(label): {
                key: values[row].item() for key, values in columns.items()
            }
            for row, label in enumerate(each.labels.tolist())
        }
    return out


def per_query(result: Retrieval, quality: str) -> np.ndarray:
    """What the quality is the mean of, float64 (Q,)."""
    if quality == "map":
        return result.ap
    return (result.rank <= _k(quality)).astype(np.float64)


def _k(quality: str) -> int:
    return int(quality.removeprefix("top"))


def compatible(
    tests: Sequence[Retrieval], labels: np.ndarray, chosen: np.ndarray, how: How, resamples: int
) -> dict:
    """Quality -> criterion, difference with its interval, and what a paragon allows to say.

    Args:
        tests: of the same queries: old/old, new/old, new/new and, if there is one, the paragon's.
        labels: (Q,), the units of the bootstrap. chosen: bool (Q,), which queries.
    """
    found = chosen & (tests[0].rank > 0)
    out = {}
    for quality in how.qualities:
        values = np.stack([per_query(test, quality)[found] for test in tests])
        old, cross, own, *paragon = values.mean(1).tolist()
        means = bootstrap_means(values[:2], labels[found], resamples)
        out[quality] = {
            "compatible": compatibility.compatible(cross, old),
            "difference": interval(means[:, 1] - means[:, 0], cross - old)._asdict(),
        }
        for free in paragon:
            out[quality] |= {
                "update_gain": _or_none(compatibility.update_gain(cross, old, free)),
                "price": compatibility.price(own, free),
                "p_up": _or_none(compatibility.p_up(own, free)),
                "p_comp": _or_none(compatibility.p_comp(cross, old, free)),
                "p_1": _or_none(compatibility.p_1(own, cross, old, free)),
            }
    return out


def chain_figures(versions: list[str], tests: dict, how: How) -> dict:
    """Quality -> matrix of all queries, [query version][gallery version], and what chain says."""
    out = {}
    for quality in how.qualities:
        matrix = [[tests[f"{q} / {g}"][EVERY][quality] for g in versions] for q in versions]
        out[quality] = {
            "matrix": matrix,
            "average_compatibility": chain.average_compatibility(np.array(matrix)),
            "average_quality": chain.average_quality(np.array(matrix)),
            "backward_transfer": chain.backward_transfer(np.array(matrix)),
            "forward_transfer": chain.forward_transfer(np.array(matrix)),
        }
    return out


def backfilling(
    items: Items,
    new: Sides,
    old: np.ndarray,
    orders: dict[str, Sequence[np.ndarray]],
    goals: dict,
    how: How,
) -> dict:
    """Name of an order -> quality -> its curve while an old gallery (G, D') is refreshed with the
    new model's rows.

    All rows of the mixed gallery have one width, as in an index. With "leading" the end of the
    curve is therefore new/new in the old width.

    Args:
        orders: name -> permutations of the gallery; the curve is the mean over them.
        goals: quality -> what the old system reaches.
    """
    query, *galleries = same_width(how.dimensions, new.query, old, new.gallery)
    ways = [backfill.refreshed(way, SHARES) for each in orders.values() for way in each]
    relevance = relevance_of(items)
    found = iter(retrieve_mixed(query, galleries, ways, relevance, how.metric, how.ks))
    out = {}
    for name, each in orders.items():
        results = list(itertools.islice(found, len(each)))
        out[name] = {q: _backfill_figures(results, q, goals[q]) for q in how.qualities}
    return out


def _backfill_figures(results: list[list[Retrieval]], quality: str, goal: float) -> dict:
    """One quality's curve, the mean over several orders' points."""
    curves = [[_mean(point, quality) for point in points] for points in results]
    curve = backfill.Curve(SHARES, np.mean(curves, axis=0))
    return {
        "shares": SHARES.tolist(),
        "values": curve.values.tolist(),
        "area": backfill.area(curve),
        "published_mean": backfill.published_mean(curve),
        "violations": backfill.violations(curve)._asdict(),
        "enough_for_old": backfill.smallest_fraction(curve, goal),
    }


def _mean(result: Retrieval, quality: str) -> float:
    return result.mean_ap if quality == "map" else result.top[_k(quality)]


def _or_none(value: float) -> float | None:
    """JSON has no NaN: an undefined figure is null."""
    return None if np.isnan(value) else float(value)
