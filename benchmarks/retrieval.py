"""Retrieval at the size of ImageNet's validation set: top-1, top-5 and mAP of 50,000 x 512.

1,000 classes of 50, each item against all the others by L2. Unit vectors of an identity and noise,
of a level that varies by image, times 1024 and rounded: whole numbers, so that float32 holds every
score exactly and the two ways can be compared whatever the order of their sums. The classic way is
the published evaluators': a matrix of distances, an argsort of every row, and scikit-learn's
average precision of the ranked list. It is timed on a few queries, all of which must agree, and
extrapolated. The limit is the bare products, in blocks: half the matrix where it is symmetric.

Backfill curves of a fifth of the images: four orders of 11 points in one pass. The classic way is
one search per point, in a gallery that is mixed anew; both must give the same figures.
"""

import time
from itertools import chain

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from bct.metrics.backfill import refreshed
from bct.metrics.blocks import SIDE
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass
from bct.metrics.retrieval import Retrieval, retrieve
from benchmarks.common import Goal, Row, median, peak_gib, publish, seconds, start


def embeddings(labels: np.ndarray, dim: int, seed: int, identity: float = 1.0) -> np.ndarray:
    """float32 (N, dim) of whole numbers; two seeds are two models of the same classes."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(labels), dim), np.float32)
    noise *= rng.uniform(1.5, 3.5, (len(labels), 1)).astype(np.float32)
    classes = np.random.default_rng(99).standard_normal((labels.max() + 1, dim), np.float32)
    for rows in np.array_split(np.arange(len(labels)), 20):
        noise[rows] += identity * classes[labels[rows]]
        noise[rows] *= 1024 / np.linalg.norm(noise[rows], axis=1, keepdims=True)
    return np.rint(noise, out=noise)


def classic(x: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, ...]:
    """(ap, rank, negatives as near as the first positive), each (len(queries),)."""
    everything, some = torch.from_numpy(x), torch.from_numpy(x[queries])
    squares = everything.square().sum(1)
    distances = some.square().sum(1)[:, None] + squares - 2 * some @ everything.T
    out = []
    for i, row in zip(queries, distances.numpy(), strict=True):
        order = np.argsort(row)
        others = order != i
        matches = (labels[order] == labels[i])[others]
        row = row[order][others]
        first = np.argmax(matches)
        ties = np.count_nonzero((row == row[first]) & ~matches)
        out.append((average_precision_score(matches, -row), first + 1, ties))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def products(x: torch.Tensor, half: bool) -> None:
    """The bare products of all pairs of rows."""
    out = torch.empty(SIDE, SIDE)
    blocks = x.split(SIDE)
    for i, a in enumerate(blocks):
        for b in blocks[i if half else 0 :]:
            torch.mm(a, b.T, out=out[: len(a), : len(b)])


def backfilled(old: np.ndarray, new: np.ndarray, labels: np.ndarray) -> Row:
    """Four curves of new queries in a gallery that is refreshed from old to new."""
    orders = [np.random.default_rng(seed).permutation(len(labels)) for seed in range(4)]
    curves = [refreshed(order, np.linspace(0, 1, 11)) for order in orders]
    classes = ByClass(labels, labels, leave_one_out=True)
    points = {}

    def one_pass() -> None:
        points["ours"] = retrieve_mixed(new, [old, new], curves, classes, "l2")

    def a_search_each() -> None:
        points["classic"] = [
            [retrieve(new, np.where(row[:, None], new, old), classes, "l2") for row in curve]
            for curve in curves
        ]

    ours, classic = ([seconds(call)] for call in (one_pass, a_search_each))
    for a, b in zip(chain(*points["ours"]), chain(*points["classic"]), strict=True):
        np.testing.assert_array_equal(a.ap, b.ap)
        np.testing.assert_array_equal(a.rank, b.rank)
    size = f"{len(labels):,} x {new.shape[1]}"
    return Row(f"backfill curves, 4 orders of 11 points, {size}", ours, classic)


def main() -> None:
    args = start(__doc__, training=False)
    n, dim, sample, repeats = (2000, 64, 10, 1) if args.small else (50_000, 512, 100, 2)
    labels = np.random.default_rng(0).permutation(np.arange(n) % (n // 50))
    x = embeddings(labels, dim, 1)
    classes = ByClass(labels, labels, leave_one_out=True)
    first = ByClass(labels[:1000], labels[:1000], leave_one_out=True)
    retrieve(x[:1000], x[:1000], first, "l2")  # a warm-up
    result: dict[str, Retrieval] = {}

    def ours(name: str, query: np.ndarray, gallery: np.ndarray) -> float:
        def call() -> None:
            result[name] = retrieve(query, gallery, classes, "l2")

        return seconds(call)

    times: dict[str, list[float]] = {"ours": [], "half": []}
    for _ in range(repeats):
        began = time.process_time()
        times["ours"].append(ours("one model", x, x))
        processor = time.process_time() - began
        gib = peak_gib()
        times["half"].append(seconds(lambda: products(torch.from_numpy(x), half=True)))
    cross = ours("new on old", x, embeddings(labels, dim, 2))
    cross_gib = peak_gib()
    whole = seconds(lambda: products(torch.from_numpy(x), half=False))
    noisy = embeddings(labels, dim, 3, identity=0.0)
    noise = ours("noise", noisy, noisy)

    queries = np.random.default_rng(1).choice(n, sample, replace=False)
    began = time.perf_counter()
    ap, rank, ties = classic(x, labels, queries)
    slow = (time.perf_counter() - began) * n / sample
    found = result["one model"]
    np.testing.assert_allclose(found.ap[queries], ap, rtol=0, atol=1e-12)
    # ours puts a negative that ties first, an argsort puts it anywhere
    assert (rank <= found.rank[queries]).all() and (found.rank[queries] <= rank + ties).all()

    some = slice(n // 5)
    curves = backfilled(embeddings(labels, dim, 2)[some], x[some], labels[some])

    size = f"{n:,} x {dim}"
    symmetric = {"limit": times["half"], "limit_name": "half the products"}
    rows = [
        Row(
            f"retrieval, leave-one-out top-1/5 and mAP, {size}",
            times["ours"],
            [slow],
            gib=gib,
            goal=Goal() if args.small else Goal(at_most=20, gib=2),
            **symmetric,
        ),
        Row(f"the same of noise, where positives lie anywhere, {size}", [noise], **symmetric),
        Row(
            f"the same of two models, not symmetric, {size}",
            [cross],
            limit=[whole],
            limit_name="the products",
            gib=cross_gib,
        ),
        curves,
    ]
    rate = 2 * n * n * dim / 1e9 / whole
    details = [
        "| | top-1 | top-5 | mAP |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {r.top[1]:.3f} | {r.top[5]:.3f} | {r.mean_ap:.3f} |"
            for name, r in result.items()
        ),
        "",
        f"The classic way took {slow / n * 1000:.0f} ms for each of {sample} queries, times "
        f"{n:,}: extrapolated. Average precisions equal to 1e-12 on these, ranks but for ties. "
        f"The first row took {processor:.1f} s of processor time, all cores together. The bare "
        f"products ran at {rate:.0f} GFLOP/s; all of the matrix takes them {whole:.1f} s, "
        f"{whole / median(times['ours']):.2f} of ours.",
    ]
    publish(args, rows, "\n".join(details))


if __name__ == "__main__":
    main()
