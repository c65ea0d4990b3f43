"""IJB-C after the embeddings, at its real size: 1:1, ours and classic, 1:N, and all eight modes.

469,375 images, 23,124 templates, 15,658,489 pairs, 512-d, random embeddings with an identity in
them. Limits on 2 cores: 1:1 3 s and 4 GiB, 1:N 5 s, eight modes of 1:1 30 s. The classic way is
the published evaluators': a loop over templates that searches all images for each, float64 gathers
of both sides of 100,000 pairs at a time, and scikit-learn's ROC curve of all scores.
"""

import time

import numpy as np

from bct.metrics import rate_name, tar_at_far
from benchmarks.common import interleaved, median, peak_gib, publish, spread, start
from tools.ijbc.protocol import Gallery, Protocol
from tools.ijbc.scoring import (
    MODES,
    PUBLISHED,
    Mode,
    open_set,
    pair_scores,
    template_features,
    verification,
)


def real_size(images: int, enrolled: int, probes: int, pairs: int, dim: int):
    """Embeddings and a protocol of these sizes. Every subject has one enrolled template."""
    rng = np.random.default_rng(0)
    templates = enrolled + probes
    subject = np.concatenate([np.arange(enrolled), rng.integers(0, enrolled, probes)])
    of_image = np.concatenate(
        [np.arange(templates), rng.integers(0, templates, images - templates)]
    )
    identity = rng.standard_normal((enrolled, dim), np.float32)
    features = rng.standard_normal((images, dim), np.float32)
    features *= 1.6
    features += identity[subject[of_image]]
    first = np.arange(enrolled)
    genuine = np.stack((subject[enrolled:], np.arange(enrolled, templates)), 1)
    flat = rng.choice(enrolled * probes, pairs - probes, replace=False)
    other = np.stack((first[flat // probes], enrolled + flat % probes), 1)
    both = np.concatenate((genuine, other))[rng.permutation(pairs)]
    protocol = Protocol(
        root=None,
        subset="IJBC",
        names=[""] * images,
        landmarks=None,
        detector=rng.uniform(0.5, 1, images).astype(np.float32),
        templates=of_image,
        medias=rng.integers(0, images // 3, images),
        first=both[:, 0],
        second=both[:, 1],
        genuine=subject[both[:, 0]] == subject[both[:, 1]],
    )
    half = enrolled // 2
    galleries = [
        Gallery("gallery_G1", first[:half], subject[:half]),
        Gallery("gallery_G2", first[half:], subject[half:enrolled]),
    ]
    return (
        features,
        protocol,
        galleries,
        Gallery("probe", np.arange(enrolled, templates), subject[enrolled:]),
    )


def classic(features: np.ndarray, protocol: Protocol) -> tuple[dict[str, float], list[float]]:
    """TAR at FAR by the nearest rule, and the seconds of its three steps."""
    marks = [time.perf_counter()]
    weighted = features * protocol.detector[:, None]
    ids = np.unique(protocol.templates)
    templates = np.zeros((len(ids), features.shape[1]))
    for row, template in enumerate(ids):
        images = np.where(protocol.templates == template)[0]
        medias, counts = np.unique(protocol.medias[images], return_counts=True)
        parts = []
        for media, count in zip(medias, counts, strict=True):
            chosen = images[protocol.medias[images] == media]
            of_media = weighted[chosen]
            parts.append(of_media[0] if count == 1 else of_media.mean(0))
        templates[row] = np.sum(parts, axis=0)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    marks.append(time.perf_counter())
    row_of = np.zeros(ids.max() + 1, np.int64)
    row_of[ids] = np.arange(len(ids))
    scores = np.zeros(len(protocol.first))
    for begin in range(0, len(scores), 100_000):
        block = slice(begin, begin + 100_000)
        left = templates[row_of[protocol.first[block]]]
        right = templates[row_of[protocol.second[block]]]
        scores[block] = np.sum(left * right, -1)
    marks.append(time.perf_counter())
    points = tar_at_far(scores, protocol.genuine, rule="nearest")
    marks.append(time.perf_counter())
    return {rate_name(p.target): p.tar for p in points}, list(np.diff(marks))


def main() -> None:
    args = start(__doc__)
    sizes = (
        (4000, 120, 600, 20_000, 64) if args.small else (469_375, 3_531, 19_593, 15_658_489, 512)
    )
    features, protocol, galleries, probes = real_size(*sizes)
    before = peak_gib()
    parts: dict[str, list[float]] = {"templates": [], "scores": [], "ROC": []}
    out = {}

    def one_to_one(mode: Mode = PUBLISHED) -> None:
        marks = [time.perf_counter()]
        out["templates"] = templates = template_features(features, protocol, mode)
        marks.append(time.perf_counter())
        out["scores"] = scores = pair_scores(templates, templates, protocol.first, protocol.second)
        marks.append(time.perf_counter())
        out["result"] = verification(scores, protocol.genuine)
        marks.append(time.perf_counter())
        for part, a, b in zip(parts.values(), marks, marks[1:], strict=False):
            part.append(b - a)

    times = interleaved({"1:1": one_to_one}, repeats=3)["1:1"]
    after = peak_gib()
    steps = {name: list(seconds) for name, seconds in parts.items()}
    search = interleaved(
        {"1:N": lambda: open_set(out["templates"], out["templates"], galleries, probes)}, repeats=2
    )["1:N"]
    with_search = peak_gib()
    # with and without the mirror image differ in how the embeddings are made, not in the scoring
    modes = interleaved({"eight": lambda: [one_to_one(mode) for mode in MODES]}, repeats=2)["eight"]
    with_modes = peak_gib()
    one_to_one()
    nearest = verification(out["scores"], protocol.genuine, "nearest")["tar"]
    classic_tar, classic_times = classic(features, protocol)
    worst = max(abs(nearest[far] - tar) for far, tar in classic_tar.items())
    assert worst * protocol.genuine.sum() <= 2, (nearest, classic_tar)  # float32 against float64
    tar = out["result"]["tar"]
    lines = [
        "| step | ours: seconds, median (min to max) | classic, once | times as fast |",
        "|---|---|---:|---:|",
        *(
            f"| {name} | {spread(t[1:])} | {slow:.1f} | {slow / median(t[1:]):.1f} |"
            for (name, t), slow in zip(steps.items(), classic_times, strict=True)
        ),
        f"| **1:1 in all** | {spread(times)} | {sum(classic_times):.1f} | "
        f"{sum(classic_times) / median(times):.1f} |",
        f"| 1:N, both galleries and joint | {spread(search)} | | |",
        f"| 1:1 in all eight modes | {spread(modes)} | | |",
        "",
        f"{sizes[0]:,} images, {len(out['templates'].ids):,} templates, {sizes[3]:,} pairs, "
        f"{sizes[4]}-d. Peak memory {after:.2f} GiB, of which {before:.2f} GiB making the inputs; "
        f"1:N raises it to {with_search:.2f} GiB, the modes to "
        f"{with_modes:.2f} GiB.",
        "TAR at FAR " + ", ".join(f"{far}: {value:.4f}" for far, value in tar.items()),
    ]
    publish(args, "\n".join(lines))


if __name__ == "__main__":
    main()
