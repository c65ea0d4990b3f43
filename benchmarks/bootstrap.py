"""Bootstrap of TAR at IJB-C's real size: 1,000 resamples of 3,531 subjects or 23,124 templates.

15,658,489 pairs scored by 4 systems, FARs 1e-4 to 1e-2 and 1e-6 to 1e-1. The classic way writes
each resample out, every pair as often as it counts, and judges it like any data; a few of them are
timed and must give the very same TARs.
"""

import time

import numpy as np
import torch

from bct.metrics.bootstrap import bootstrap_tar
from bct.metrics.percentiles import interval
from bct.metrics.scores import FARS, rate_name, tar_at_far
from bct.streams import generator
from benchmarks.common import Goal, Row, peak_gib, publish, start
from benchmarks.ijbc import real_size

SYSTEMS = 4
WRITTEN_OUT = 2  # resamples of one system


def system_scores(templates: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float32 (P,); real_size compares enrolled templates, which come first, with probes."""
    unit = templates / np.linalg.norm(templates, axis=1, keepdims=True)
    enrolled = second.min()
    return (unit[:enrolled] @ unit[enrolled:].T)[first, second - enrolled]


def classic(scores, first, second, genuine, fars) -> tuple[np.ndarray, float]:
    """TARs (WRITTEN_OUT, F) of one system in the first resamples, and the seconds of each."""
    ids = np.union1d(first, second)
    stream = generator("cpu", 0, "bootstrap over templates")
    tars, began = [], time.perf_counter()
    for _ in range(WRITTEN_OUT):
        drawn = ids[torch.randint(len(ids), (len(ids),), generator=stream).numpy()]
        w = np.bincount(drawn, minlength=ids[-1] + 1)
        times = w[first] * np.where(first == second, 1, w[second])
        points = tar_at_far(np.repeat(scores, times), np.repeat(genuine, times), fars)
        tars.append([point.tar for point in points])
    return np.array(tars), (time.perf_counter() - began) / WRITTEN_OUT


def main() -> None:
    args = start(__doc__)
    sizes, resamples = (
        ((720, 120, 600, 20_000, 32), 20)
        if args.small
        else ((23_124, 3_531, 19_593, 15_658_489, 128), 1000)
    )
    features, protocol = real_size(*sizes)
    first, second, genuine = protocol.pairs
    subject = np.concatenate([g.subjects for g in (*protocol.galleries, protocol.probes)])
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(SYSTEMS):  # each worse than the one before
        scores.append(system_scores(features, first, second))
        features += 0.5 * rng.standard_normal(features.shape, np.float32)
    before = peak_gib()

    units = {"subjects": (subject[first], subject[second]), "templates": (first, second)}
    ours = {}
    for name, sides in units.items():
        for fars in (FARS[2:5], FARS):
            began = time.perf_counter()
            tars = bootstrap_tar(scores, *sides, genuine, fars, resamples)
            ours[name, fars] = tars, time.perf_counter() - began
    after = peak_gib()

    rows = []
    for (name, fars), (tars, seconds) in ours.items():
        expected, each = classic(scores[0], *units[name], genuine, fars)
        np.testing.assert_array_equal(tars[:WRITTEN_OUT, 0], expected)
        rows.append(
            Row(
                f"bootstrap over {name}, FARs {rate_name(fars[0])} to {rate_name(fars[-1])}",
                [seconds],
                [each * resamples * SYSTEMS],
                gib=after,
                goal=Goal() if args.small else Goal(at_most=60),
            )
        )
    better, worse = (tar_at_far(s, genuine, (1e-4,))[0].tar for s in scores[:2])
    differences = []
    for name in units:
        at_far = ours[name, FARS][0][:, :2, FARS.index(1e-4)]
        estimate, low, high = interval(at_far[:, 0] - at_far[:, 1], better - worse)
        differences.append(f"{estimate:+.4f} [{low:+.4f}, {high:+.4f}] over {name}")
    details = [
        f"{sizes[3]:,} pairs, {np.count_nonzero(genuine):,} of them genuine; {sizes[1]:,} "
        f"subjects, {sizes[0]:,} templates; {SYSTEMS} systems, {resamples:,} resamples. Making the "
        f"inputs takes {before:.2f} GiB. The classic way is extrapolated from {WRITTEN_OUT} "
        "resamples of one system, which give the same TARs.",
        "",
        f"TAR at FAR 1e-4, first system minus second: {', '.join(differences)}.",
    ]
    publish(args, rows, "\n".join(details))


if __name__ == "__main__":
    main()
