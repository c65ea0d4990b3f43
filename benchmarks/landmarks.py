"""Landmarks and people at the sizes of their protocols: RParis6k, GLDv2, Market-1501, re-ranking.

Made-up descriptors of 2,048 numbers: noise, and in a query's positives a share of the query that
varies, so that positives stand anywhere. The classic ways are our own plain forms of what published
evaluations do, and must give the same figures:

- RParis6k's size, easy, medium and hard: a full stable sort of each query's scores, and for each
  reading the places of its positive and junk images in it, by membership.
- GLDv2's size, the first 100 of a memory-mapped index: a running topk over all scores.
- Market-1501's size with the camera rule: a sort of each row of the distances, then query by query
  what is left of it.
- Re-ranking: matrices of N x N distances, weights and ranks, at a quarter of Market's size. They
  don't fit at the whole.

The limit is the bare product of the same float32 numbers (re-ranking: float64), of the same map.
Memory is what a call takes for itself at most, without pages of files.
"""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bct.metrics.relevance import ByClass, ByItem, Rows
from bct.metrics.reranking import reranked, retrieve_reranked
from bct.metrics.retrieval import Retrieval, cmc, retrieve, retrieve_readings
from bct.threads import each_in_threads
from benchmarks.common import Goal, Row, compare, publish, seconds, start
from benchmarks.embed import anonymous

KS = (1, 5, 10)


def peak_of(call: Callable[[], object]) -> float:
    """GiB of memory that a call takes at most beyond what was held before, without file pages."""
    before, done, most = anonymous(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(most[0], anonymous() - before) / 2**30


def planted(query: np.ndarray, gallery: np.ndarray, found: list[np.ndarray], seed: int) -> None:
    """Adds to the gallery rows that a query ought to find a share of it."""
    rng = np.random.default_rng(seed)
    for row, rows in zip(query, found, strict=True):
        gallery[rows] += rng.uniform(0, 1, (len(rows), 1)).astype(np.float32) * row


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---- Revisited


def revisited(args) -> Row:
    q, g, dim = (10, 400, 64) if args.small else (70, 6322, 2048)
    rng = np.random.default_rng(0)
    query = rng.standard_normal((q, dim), np.float32)
    gallery = rng.standard_normal((g, dim), np.float32)
    sides = [np.split(rng.permutation(g)[: g // 12], [g // 60, g // 25]) for _ in range(q)]
    planted(query, gallery, [np.concatenate(side[:2]) for side in sides], 1)
    easy, hard, junk = zip(*sides, strict=True)
    parts = {
        "medium": ([easy, hard], [junk]),
        "easy": ([easy], [junk, hard]),
        "hard": ([hard], [junk, easy]),
    }
    lists = {
        name: [[np.concatenate(rows) for rows in zip(*side, strict=True)] for side in both]
        for name, both in parts.items()
    }
    readings = {name: ByItem(*map(Rows.of_lists, both)) for name, both in lists.items()}
    found = {}

    def ours() -> None:
        found["ours"] = retrieve_readings(query, gallery, readings, ks=KS, way="trapezoid")

    def classic() -> None:
        ranks = np.argsort(-(unit(gallery) @ unit(query).T), axis=0, kind="stable")  # (G, Q)
        found["classic"] = {
            name: np.mean(
                [plain_revisited(*row) for row in zip(ranks.T, *both, strict=True)], axis=0
            )
            for name, both in lists.items()
        }

    a, b, out = torch.from_numpy(query), torch.from_numpy(gallery), torch.empty(q, g)
    about = {"limit_name": "bare product", "gib": peak_of(ours)}
    about["goal"] = Goal() if args.small else Goal(times=5)
    row = compare(
        f"Revisited's easy, medium and hard, {q:,} x {g:,} x {dim:,}",
        *(ours, classic, lambda: torch.mm(a, b.T, out=out)), repeats=5, **about,
    )  # fmt: skip
    for name, figures in found["classic"].items():
        result = found["ours"][name]
        mine = [result.mean_ap, *result.mean_precision.values()]
        np.testing.assert_allclose(mine, figures, rtol=0, atol=1e-5)
    return row


def plain_revisited(ranked: np.ndarray, positive: np.ndarray, junk: np.ndarray) -> list[float]:
    """(average precision, precision at each k) of one query: both kinds of images are looked for in
    the ranking, then positives are moved up by the junk before them, one by one."""
    every = np.arange(len(ranked))
    places, removed = every[np.isin(ranked, positive)], every[np.isin(ranked, junk)]
    before = 0
    for i in range(len(places)):
        while before < len(removed) and removed[before] < places[i]:
            before += 1
        places[i] -= before
    ap = 0.0
    for i, place in enumerate(places):
        left = i / place if place else 1.0
        ap += (left + (i + 1) / (place + 1)) / 2 / len(places)
    depths = [min(k, places.max() + 1) for k in KS]
    return [ap, *((places < depth).sum() / depth for depth in depths)]


# ---- Google Landmarks v2


def landmarks(args) -> Row:
    q, g, dim = (20, 3000, 64) if args.small else (750, 761_757, 2048)
    query = np.random.default_rng(2).standard_normal((q, dim), np.float32)
    rng = np.random.default_rng(3)
    rows = np.split(rng.choice(g, q * 10, replace=False), q)
    relevance = ByItem(Rows.of_lists(rows), Rows.of_lists([[]] * q))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.npy"
        write_index(file, query, rows, (g, dim))
        return first_hundred(args, query, np.load(file, mmap_mode="r+"), relevance)


def write_index(file: Path, query: np.ndarray, rows: list[np.ndarray], shape: tuple) -> None:
    index = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    stream = torch.Generator().manual_seed(4)
    for start_ in range(0, shape[0], 1 << 14):
        block = index[start_ : start_ + (1 << 14)]
        torch.from_numpy(block).normal_(generator=stream)
    planted(query, index, rows, 5)
    index.flush()


def first_hundred(args, query: np.ndarray, index: np.ndarray, relevance: ByItem) -> Row:
    q, (g, dim), block = len(query), index.shape, 1 << 12
    found, best = {}, {}

    def ours() -> None:
        found["ours"] = retrieve(query, index, relevance, ks=KS, way="first100")

    def classic() -> None:
        a = torch.from_numpy(unit(query))
        scores, names = torch.empty(q, 0), torch.empty(q, 0, dtype=torch.int64)
        for i in range(0, g, block):
            rows = torch.from_numpy(unit(np.asarray(index[i : i + block])))
            scores = torch.cat([scores, a @ rows.T], 1)
            names = torch.cat([names, torch.arange(i, i + len(rows)).expand(q, -1)], 1)
            scores, at = torch.topk(scores, min(100, scores.shape[1]), sorted=True)
            names = torch.gather(names, 1, at)
        best["classic"] = names.numpy()

    def limit() -> None:
        a = torch.from_numpy(query)

        def work(rows: slice) -> None:
            torch.mm(a, torch.from_numpy(np.asarray(index[rows])).T)

        each_in_threads(work, g, block >> 1)

    limit()  # the map's pages are in the memory, as far as there is room
    times = {"limit": [seconds(limit)]}
    gib = peak_of(lambda: times.update(ours=[seconds(ours)]))
    times["classic"] = [seconds(classic)]
    times["limit"].append(seconds(limit))
    number = relevance.positive.counts()
    ap = [
        plain_first(ranked, relevance.positive.rows[10 * i : 10 * i + 10])
        for i, ranked in enumerate(best["classic"])
    ]
    assert (number == 10).all()
    np.testing.assert_allclose(found["ours"].ap, ap, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["ours"].mean_ap, np.mean(ap), rtol=0, atol=1e-5)
    return Row(
        f"the first 100 of a memory-mapped index, {q:,} x {g:,} x {dim:,}",
        **times, limit_name="bare product over the map", gib=gib,
        goal=Goal() if args.small else Goal(share=1 / 1.3, gib=2),
    )  # fmt: skip


def plain_first(ranked: np.ndarray, positive: np.ndarray) -> float:
    hits = np.isin(ranked, positive)
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].sum() / len(positive))


# ---- Market-1501


def people(q: int, g: int, dim: int) -> tuple[np.ndarray, np.ndarray, ByClass, tuple]:
    """(query, gallery, relevance, what the plain way wants)."""
    rng = np.random.default_rng(6)
    persons = max(8, q * 750 // 3368)
    pid = np.arange(q) % persons + 1
    other = np.concatenate([np.zeros(g * 2798 // 15913, int), rng.integers(1, persons + 1, g)])[:g]
    camera, other_camera = rng.integers(0, 6, q), rng.integers(0, 6, g)
    person = rng.standard_normal((persons + 1, dim), np.float32)
    person[0] = 0  # distractors
    query = rng.standard_normal((q, dim), np.float32) + 0.5 * person[pid]
    gallery = rng.standard_normal((g, dim), np.float32)
    gallery += rng.uniform(0, 0.6, (g, 1)).astype(np.float32) * person[other]
    same = [
        np.flatnonzero((other == p) & (other_camera == c)) for p, c in zip(pid, camera, strict=True)
    ]
    relevance = ByClass(pid, other, ignored=Rows.of_lists(same))
    return query, gallery, relevance, (pid, other, camera, other_camera)


def plain_people(distances: np.ndarray, of: tuple) -> tuple[float, np.ndarray]:
    """(mAP, CMC to 10): a sort of each row, and query by query what is left of it."""
    order, ap, curves = np.argsort(distances, axis=1), [], []
    for ranked, pid, camera in zip(order, of[0], of[2], strict=True):
        kept = ~((of[1][ranked] == pid) & (of[3][ranked] == camera))
        hits = (of[1][ranked] == pid)[kept]
        if hits.any():
            found = np.cumsum(hits)
            curves.append(np.minimum(found, 1)[:10])
            ap.append((found / np.arange(1, len(found) + 1))[hits].sum() / hits.sum())
    return float(np.mean(ap)), np.mean(curves, axis=0)


def market(args) -> Row:
    q, g, dim = (60, 400, 64) if args.small else (3368, 15_913, 2048)
    query, gallery, relevance, of = people(q, g, dim)
    found = {}

    def ours() -> None:
        found["ours"] = retrieve(query, gallery, relevance, ks=KS)

    def classic() -> None:
        found["classic"] = plain_people(2 - 2 * unit(query) @ unit(gallery).T, of)

    a, b, out = torch.from_numpy(query), torch.from_numpy(gallery), torch.empty(q, g)
    row = compare(
        f"Market-1501 with the camera rule, {q:,} x {g:,} x {dim:,}",
        *(ours, classic, lambda: torch.mm(a, b.T, out=out)), repeats=3,
        limit_name="bare product", gib=peak_of(ours),
        goal=Goal() if args.small else Goal(share=1 / 1.5),
    )  # fmt: skip
    same_people(found["ours"], found["classic"])
    return row


def same_people(ours: Retrieval, classic: tuple[float, np.ndarray]) -> None:
    np.testing.assert_allclose(ours.mean_ap, classic[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cmc(ours, 10), classic[1], rtol=0, atol=2 / ours.queries)


# ---- re-ranking


def plain_reranked(query: np.ndarray, gallery: np.ndarray, k1=20, k2=6, weight=0.3) -> np.ndarray:
    """Re-ranking with whole matrices, float64."""
    x = unit(np.concatenate([query, gallery]).astype(np.float64))
    n = len(x)
    distance = np.maximum(2 - 2 * x @ x.T, 0)
    distance /= distance.max(axis=1, keepdims=True)
    rank = np.argsort(distance, axis=1)

    def mutual(i: int, k: int) -> np.ndarray:
        forward = rank[i, : k + 1]
        return forward[(rank[forward, : k + 1] == i).any(axis=1)]

    v = np.zeros((n, n))
    for i in range(n):
        own = mutual(i, k1)
        chosen = [own]
        for candidate in own:
            near = mutual(candidate, round(k1 / 2))
            if len(np.intersect1d(near, own)) > 2 / 3 * len(near):
                chosen.append(near)
        chosen = np.unique(np.concatenate(chosen))
        v[i, chosen] = np.exp(-distance[i, chosen])
        v[i] /= v[i].sum()
    v = np.stack([v[rank[i, :k2]].mean(axis=0) for i in range(n)])
    out = np.empty((len(query), n))
    for i in range(len(query)):
        columns = np.flatnonzero(v[i])
        shared = np.minimum(v[:, columns], v[i, columns]).sum(axis=1)
        out[i] = 1 - shared / (2 - shared)
    return ((1 - weight) * out + weight * distance[: len(query)])[:, len(query) :]


def reranking(args, size: tuple[int, int, int], plain: bool) -> Row:
    query, gallery, relevance, of = people(*size)
    found, times = {}, {}

    def ours() -> None:
        found["ours"] = retrieve_reranked(query, gallery, {"": relevance}, ks=KS)[""]

    def classic() -> None:
        found["classic"] = plain_reranked(query, gallery)

    def limit() -> None:
        x = torch.from_numpy(np.concatenate([query, gallery])).double()
        each_in_threads(lambda part: torch.mm(x[part], x.T), len(x), 256)

    gib = peak_of(lambda: times.update(ours=[seconds(ours)]))
    times["limit"] = [seconds(limit)]
    if plain:
        times["classic"] = [seconds(classic)]
        blocks = np.concatenate([block for _, block in reranked(query, gallery)])
        np.testing.assert_allclose(blocks, found["classic"], rtol=0, atol=1e-9)
        same_people(found["ours"], plain_people(found["classic"], of))
    name = "k-reciprocal re-ranking, {:,} x {:,} x {:,}".format(*size)
    about = {"limit_name": "bare product in float64", "gib": gib}
    return Row(name, **times, **about, goal=Goal() if args.small else Goal(gib=4))


def main() -> None:
    args = start(__doc__, training=False)
    rows = [revisited(args), market(args)]
    if args.small:
        rows.append(reranking(args, (60, 400, 64), plain=True))
    else:
        rows.append(reranking(args, (842, 3978, 2048), plain=True))
        rows.append(reranking(args, (3368, 15_913, 2048), plain=False))
    publish(args, [*rows, landmarks(args)])


if __name__ == "__main__":
    main()
