"""Class means, credible mask and class statistics of 5.18 million 512-d embeddings, from disk.

Writes the embeddings (10.6 GB, random) to a temporary file first. The classic way is the published
tools': the embeddings in memory, a Python loop over the labels in their order, and per class a
mean, the distances to it and a sort. It is timed on the first classes and extrapolated by images;
its memory is not counted. The limit is reading the file, once per pass, into one buffer.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bct.errors import BctError
from bct.stored.class_statistics import CHUNK, class_means, class_statistics, credible_mask
from benchmarks.common import Goal, compare, publish, start

KEPT = 0.9


def main() -> None:
    args = start(__doc__, training=False)
    images, classes, dim = (20_000, 360, 32) if args.small else (5_179_510, 93_431, 512)
    part = images // (2 if args.small else 25)
    rng = np.random.default_rng(0)
    labels = np.sort(
        np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    )
    part = int(np.searchsorted(labels, labels[part]))  # whole classes
    goal = Goal() if args.small else Goal(times=10, share=0.5, gib=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write(path, images, dim, rng)
        features = np.load(path, mmap_mode="r")
        rows = [
            compare(
                name,
                lambda call=call: call(features, labels),
                limit=lambda passes=passes: [read(path, dim) for _ in range(passes)],
                limit_name=f"reading, {passes} pass{'es' if passes > 1 else ''}",
                repeats=2,
                goal=goal,
            )
            for name, passes, call in (
                ("class means", 1, class_means),
                ("credible mask", 2, lambda x, y: credible_mask(x, y, KEPT)),
                ("class statistics", 2, class_statistics),
            )
        ]
        x, y = np.array(features[:part]), labels[:part]
    results = []
    for row, call in zip(rows, (classic_means, classic_mask, classic_statistics), strict=True):
        began = time.perf_counter()
        results.append(call(x, y))
        row.classic = [(time.perf_counter() - began) * images / part]
    means, mask, (centre, radius, kept) = results
    np.testing.assert_allclose(class_means(x, y), means, atol=1e-5)
    differing = np.count_nonzero(credible_mask(x, y, KEPT) != mask)
    assert differing <= 1e-3 * part, differing  # near-ties in float32
    table = class_statistics(x, y)
    np.testing.assert_allclose(table["centre"], centre, atol=1e-5)
    same = table["kept"] == kept
    outside = np.count_nonzero(~same)  # a distance at a fence, in float32
    assert outside <= 1e-3 * len(kept), outside
    np.testing.assert_allclose(table["radius"][same], radius[same], atol=1e-4)
    size = images * dim * 4
    rates = ", ".join(f"{r.workload} {size / min(r.ours) / 1e9:.2f}" for r in rows)
    details = (
        f"{images:,} x {dim} float32 ({size / 1e9:.1f} GB), {classes:,} classes, labels sorted. "
        f"The classic way ran on the first {part:,} images and is extrapolated; of its mask "
        f"{differing} entries differ, of its classes' kept images {outside} (near-ties). "
        f"GB of embeddings per second at best: {rates}."
    )
    publish(args, rows, details)


def runs(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of every run of equal labels, by a loop over each label."""
    first = 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or labels[i] != labels[first]:
            yield first, i
            first = i


def classic_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    order = np.argsort(labels)
    means = [features[order[a:b]].mean(0) for a, b in runs(labels[order])]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


def classic_mask(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    x = x / np.linalg.norm(x, axis=0, keepdims=True)
    mask = np.zeros(len(x), bool)
    for a, b in runs(labels):
        distance = np.linalg.norm(x[a:b] - x[a:b].mean(0), axis=1)
        mask[a + np.argsort(distance)[: int(np.ceil(KEPT * (b - a)))]] = True
    return mask


def classic_statistics(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Centres, largest radii and how many are kept: without the angles, which are not published."""
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    centres, radii, kept = [], [], []
    for a, b in runs(labels):
        centre, n = x[a:b].mean(0), b - a
        r = np.sort(np.linalg.norm(x[a:b] - centre, axis=1))
        if n >= 4:
            q1, q3 = r[n // 4], r[3 * n // 4]
            reach = 1.5 * (q3 - q1)
            r = r[(r >= q1 - reach) & (r <= q3 + reach)]
        centres.append(centre)
        radii.append(r[-1])
        kept.append(len(r))
    return np.stack(centres), np.array(radii), np.array(kept)


def read(path: Path, dim: int) -> None:
    """The whole file into one buffer of a chunk."""
    buffer = bytearray(CHUNK * dim * 4)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def write(path: Path, images: int, dim: int, rng: np.random.Generator) -> None:
    """Random embeddings in blocks, through a file handle: they do not count as our memory."""
    size, free = images * dim * 4, shutil.disk_usage(path.parent).free
    if free < 1.05 * size:
        raise BctError(
            f"{path.parent} has {free / 1e9:.1f} GB free, the embeddings take {size / 1e9:.1f}",
            "make room, or set TMPDIR to a folder of another disk",
        )
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (images, dim)}
        )
        block = rng.standard_normal((1 << 15, dim), np.float32)
        for start_row in range(0, images, len(block)):
            file.write(block[: images - start_row].tobytes())
            block += 0.01


if __name__ == "__main__":
    main()
