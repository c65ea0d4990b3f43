"""Searches on image sets: which tests there are, and their figures as plain values."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bct.metrics import chain
from bct.metrics.relevance import ByClass, Relevance, positives, unopposed
from bct.metrics.retrieval import Retrieval, bootstrap_means, by_class, cmc, of_queries, retrieve
from bct.models.widths import same_width
from bct.protocols.protocol import Search
from bct.protocols.roles import Roles, Test, test_name
from bct.protocols.verdict import judged

EVERY, OLD, NEW = "all queries", "queries of old classes", "queries of new classes"
OVER = "classes"  # what intervals are resampled over
DEPTH = 20  # of the CMC


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
    """metric: of bct.metrics.retrieval. dimensions: of bct.models.widths. ks: which top-k."""

    metric: str = "cosine"
    dimensions: str = "equal"
    ks: tuple[int, ...] = (1, 5)

    @property
    def qualities(self) -> list[str]:
        return [*(f"top{k}" for k in self.ks), "map"]


def run_tests(
    relevance: Relevance, sides: Mapping[str, Sides], roles: Roles, how: How
) -> tuple[dict[Test, Retrieval], list[str]]:
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
        results[test] = search(relevance, *both, how)
    return results, left_out


def search(relevance: Relevance, query: np.ndarray, gallery: np.ndarray, how: How) -> Retrieval:
    """Queries (Q, D) against a gallery (G, D'), which may be another model's."""
    same = query is gallery  # before they are cut: half of the products are enough
    query, gallery = same_width(how.dimensions, query, gallery)
    return retrieve(query, query if same else gallery, relevance, how.metric, how.ks)


def parts_of(relevance: ByClass, old: np.ndarray | None) -> dict[str, np.ndarray]:
    """Part -> which queries, bool (Q,): all, and those of old and of new classes, unless there are
    none that could be found.

    Args:
        old: bool (C,), which labels are old classes; None if that is not known.
    """
    parts = {EVERY: np.ones(len(relevance.query), bool)}
    if old is not None:
        findable = (positives(relevance) > 0) & ~unopposed(relevance, len(relevance.gallery))
        of_old = old[relevance.query]
        parts |= {OLD: of_old, NEW: ~of_old}
        parts = {part: chosen for part, chosen in parts.items() if (chosen & findable).any()}
    return parts


def figures(
    result: Retrieval,
    parts: dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    names: list[str] | None = None,
) -> dict:
    """One test: top1, ..., map and the numbers of queries of each part; the CMC of all.

    Args:
        labels: (Q,), the queries', for figures of each class; None: without. names: by label.
    """
    out = {}
    for part, chosen in parts.items():
        found = of_queries(result, chosen)
        top = {f"top{k}": share for k, share in found.top.items()}
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
            names[label] if names else str(label): {
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


def mean_of(result: Retrieval, quality: str) -> float:
    """A quality of all queries."""
    return result.mean_ap if quality == "map" else result.top[_k(quality)]


def _k(quality: str) -> int:
    return int(quality.removeprefix("top"))


def compatible(
    tests: Sequence[Retrieval], labels: np.ndarray, chosen: np.ndarray, how: How, resamples: int
) -> dict:
    """Quality -> the figures of its verdict, whose interval is over classes.

    Args:
        tests: of the same queries: old/old, new/old, new/new and, if there is one, alone/alone.
        labels: (Q,), the queries' classes. chosen: bool (Q,), which queries.
    """
    found = chosen & (tests[0].rank > 0)
    out = {}
    for quality in how.qualities:
        values = np.stack([per_query(test, quality)[found] for test in tests])
        means = bootstrap_means(values[:2], labels[found], resamples)
        gap = means[:, 1] - means[:, 0]
        qualities = values.mean(1).tolist()
        out[quality] = judged(quality, *qualities, replicates=gap, over=OVER).figures()
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
    results: Mapping[Test, Retrieval],
    roles: Roles,
    how: How,
    parts: dict[str, np.ndarray],
    labels: np.ndarray,
    resamples: int,
    names: list[str] | None = None,
    per_class: bool = False,
) -> dict:
    """What results have to say: tests and, where the roles ask for it, chain or compatibility.

    Args:
        labels: (Q,), the queries' classes, which intervals are over.
    """
    of_class = labels if per_class else None
    tests = {test: figures(result, parts, of_class, names) for test, result in results.items()}
    out = {"tests": {test_name(test): found for test, found in tests.items()}}
    if roles.chain:
        out["chain"] = chain_figures(roles.versions, tests, how)
    if roles.old is not None:
        out["compatibility"] = {
            label: {
                part: compatible(
                    [results[test] for test in roles.compared(label)],
                    labels, chosen, how, resamples,
                )
                for part, chosen in parts.items()
            }
            for label in roles.new
        }  # fmt: skip
    return out
