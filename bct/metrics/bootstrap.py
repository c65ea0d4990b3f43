"""How much TAR at FAR would differ on other people: bootstrap over subjects or templates.

Any function of the TARs of several systems has its interval from the same replicates:

    tars = bootstrap_tar([old, cross, alone], subject_a, subject_b, genuine, (1e-4,))[:, :, 0]
    o, c, a = tars.T
    interval((c - o) / (a - o), update_gain(cross_tar, old_tar, alone_tar))
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from bct.errors import BctError
from bct.metrics.scores import split_scores
from bct.streams import generator

_CELLS = 1 << 25  # units times resamples held at once: about 1 GiB
_FLOAT32_EXACT = 1 << 24  # up to here it holds all whole numbers


def bootstrap_tar(
    scores: np.ndarray | Sequence[np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    genuine: np.ndarray,
    fars: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """TAR at each FAR of each system in resamples of the units, the same for all systems.

    A resample draws U of the U units with replacement; w[u] is how often u was drawn. In it

        a pair of the units a != b counts w[a] w[b] times, a pair within one unit a w[a] times,
        TAR = highest weighted TAR whose weighted FAR does not exceed the target ("strict").

    A copy of a unit brings the pairs within it. Pairs between two copies are left out: they would
    compare a person with himself as if with somebody else, or a picture with itself. What to draw:

    - subjects, wherever they are known. A genuine pair lies within one unit, so the genuine pairs
      of a person come and go together, which is how they would differ on other people.
    - templates (or images), if the people are given and only their pictures are random. Weights of
      genuine pairs multiply too, and weights that multiply count the variance of what is particular
      to a pair three times: 1.3 to 2 times too wide in simulations of such pairs. It sees
      a part of the differences between people only: too narrow where they matter.
    - pairs, if nothing is known: give each pair its own number on both sides. It takes pairs that
      share a person for independent: too narrow if they do.

    A resample without a genuine or an impostor pair has no TAR and is drawn again.

    All impostors are summed once, and per system again from the best one on until the largest FAR
    is passed: that FAR decides the cost.

    Args:
        scores: float (K, P), or K arrays (P,): scores of the same P pairs by K systems.
        first, second: int (P,), the unit on either side; an id is the same unit on both.
        genuine: bool (P,).
        fars: F false-accept rates, 0..1.
        resamples: R.

    Returns:
        float64 (R, K, F), in 0..1. Exact: weights are added as whole numbers.

    Raises:
        BctError: shapes that do not fit, a FAR outside 0..1, no genuine or impostor pair, scores
            that are not finite.

    Source: between units the weights are those of Owen, The pigeonhole bootstrap (2007), within
    them those of the cluster bootstrap; Fogliato, Patil and Perona, Confidence intervals for error
    rates in 1:1 matching tasks (IJCV 2024), review such bootstraps.
    """
    genuine = np.asarray(genuine, bool)
    _check(scores, first, second, genuine, fars)
    split = [split_scores(np.asarray(s), genuine) for s in scores]
    units, pairs = _rows(first, second)
    pairs = pairs[:, genuine], pairs[:, ~genuine]
    tars = []
    for sample, impostors in _samples(units, *pairs, resamples, seed):
        # as tar_at_far: a target that is a whole number of impostors is used up
        allowed = np.floor(impostors[:, None] * np.array(fars) * (1 + 1e-12)).astype(np.int64)
        tars.append(np.stack([_tars(*s, *pairs, sample, allowed) for s in split], axis=1))
    return np.concatenate(tars)


def _check(
    scores: Sequence[np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    genuine: np.ndarray,
    fars: Sequence[float],
) -> None:
    shapes = {np.shape(s) for s in scores}
    others = [np.shape(values) for values in (first, second, genuine)]
    if shapes != {*others} or len(shapes) != 1 or genuine.ndim != 1:
        raise BctError(
            f"scores are {', '.join(map(str, sorted(shapes)))}; units and labels are "
            f"{', '.join(map(str, others))}",
            "give scores (systems, pairs), and two units and a label per pair",
        )
    if not len(fars) or not all(0 <= far <= 1 for far in fars):
        raise BctError(f"the FARs are {list(fars)}", "give at least one, each in 0..1")


def _rows(first: np.ndarray, second: np.ndarray) -> tuple[int, np.ndarray]:
    """The number U of units, and the row of either side of each pair, int64 (2, P).

    The second side of a pair within one unit is row U, whose weight is always 1: w[a] * 1.
    """
    ids = np.unique(np.concatenate([np.unique(first), np.unique(second)]))
    pairs = np.stack([np.searchsorted(ids, side) for side in (first, second)])
    pairs[1, pairs[0] == pairs[1]] = len(ids)
    return len(ids), pairs


class _Sample(NamedTuple):
    """R resamples.

    counts: int64 (R, U + 1), how often each unit is drawn, and 1.
    table: float32 (U + 1, R), the same.
    exact: of how many pairs float32 adds the weights without rounding.
    """

    counts: np.ndarray
    table: torch.Tensor
    exact: int


def _samples(
    units: int, genuine: np.ndarray, impostor: np.ndarray, resamples: int, seed: int
) -> Iterator[tuple[_Sample, np.ndarray]]:
    """Resamples with both kinds of pairs and their numbers of impostors (R,), as many at once as
    memory allows."""
    # published intervals were drawn from the stream of this name
    stream = generator("cpu", seed, "bootstrap over templates")
    # ends: the at most four units of one genuine and one impostor pair are all drawn in 9 % of
    # resamples or more
    while resamples:
        sample = _draw(units, int(np.clip(_CELLS // units, 1, resamples)), stream)
        genuines, impostors = (_weight(pairs, sample) for pairs in (genuine, impostor))
        valid = (genuines > 0) & (impostors > 0)
        if valid.any():
            resamples -= int(valid.sum())
            table = sample.table[:, torch.from_numpy(valid)]
            yield _Sample(sample.counts[valid], table, sample.exact), impostors[valid]


def _draw(units: int, resamples: int, stream: torch.Generator) -> _Sample:
    drawn = torch.randint(units, (resamples, units), generator=stream).numpy()
    drawn += (units + 1) * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * (units + 1))
    counts = counts.reshape(resamples, units + 1)
    counts[:, units] = 1
    table = torch.from_numpy(counts.T.astype(np.float32, order="C"))
    return _Sample(counts, table, _FLOAT32_EXACT // int(counts.max()) ** 2)


def _weight(pairs: np.ndarray, sample: _Sample) -> np.ndarray:
    """sum over pairs (a, b) of w[a] w[b] = sum over a of w[a] (sum over its partners b of w[b]).

    Args:
        pairs: (2, n).

    Returns:
        int64 (R,).
    """
    total = torch.zeros(len(sample.counts), dtype=torch.int64)
    for begin in range(0, pairs.shape[1], sample.exact):
        first, second = pairs[:, begin : begin + sample.exact]
        order = np.argsort(first)
        first, second = first[order], torch.from_numpy(second[order])
        starts = np.flatnonzero(np.diff(first, prepend=-1))
        partners = embedding_bag(second, sample.table, torch.from_numpy(starts), mode="sum")
        total += partners.mul_(sample.table[torch.from_numpy(first[starts])]).sum(0).long()
    return total.numpy()


def _tars(
    genuine_scores: np.ndarray,
    impostor_scores: np.ndarray,
    genuine: np.ndarray,
    impostor: np.ndarray,
    sample: _Sample,
    allowed: np.ndarray,
) -> np.ndarray:
    """TAR of one system in each resample.

    Args:
        genuine_scores: (G,); impostor_scores: (I,).
        genuine: (2, G); impostor: (2, I), pairs.
        allowed: int64 (R, F), impostors that may be accepted.

    Returns:
        (R, F).
    """
    blocked = _blocked(impostor_scores, impostor, sample, allowed)
    order = np.argsort(genuine_scores)
    above = len(order) - np.searchsorted(genuine_scores[order], blocked, side="right")
    first, second = genuine[:, order[::-1]]
    tars = np.empty(above.shape)
    for r, count in enumerate(sample.counts):
        true = np.append(0, np.cumsum(count[first] * count[second]))
        tars[r] = true[above[r]] / true[-1]
    return tars


def _blocked(
    scores: np.ndarray, pairs: np.ndarray, sample: _Sample, allowed: np.ndarray
) -> np.ndarray:
    """Score of the best impostor that is one too many, -inf if all may be accepted: (R, F).

    All that score no more are blocked with it. Whole blocks of impostors are summed for all
    resamples together; pair by pair we look only into the block where a resample's threshold lies.
    """
    best, values, edges, false = _blocks(scores, pairs, sample, allowed.max(1))
    block = np.stack([(false <= a).sum(0) - 1 for a in allowed.T], axis=1)
    place = np.empty(allowed.shape, np.int64)
    for r, count in enumerate(sample.counts):
        for f, b in enumerate(block[r]):
            first, second = best[:, edges[b] : edges[b + 1]]
            running = false[b, r] + np.cumsum(count[first] * count[second])
            place[r, f] = edges[b] + np.searchsorted(running, allowed[r, f], side="right")
    return np.append(values, -np.inf)[place]


def _blocks(
    scores: np.ndarray, pairs: np.ndarray, sample: _Sample, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """The best impostors in blocks, until in every resample r there are more than most[r] of them.

    Returns:
        best: (2, depth), pairs by descending score; values: (depth,), their scores.
        edges: block b is edges[b] to edges[b + 1], for b in 0..B; the last one is empty.
        false: int64 (B + 1, R), how much the pairs before block b count.
    """
    depth = 64 + 2 * int(most.max())  # a pair counts once on average
    while True:
        depth = min(depth, len(scores))
        values, order = torch.topk(torch.from_numpy(scores), depth)
        best = pairs[:, order.numpy()]
        edges, false = [0], [np.zeros(len(most), np.int64)]
        while edges[-1] < depth and (false[-1] <= most).any():
            edges.append(min(edges[-1] + max(4096, edges[-1] // 16), depth))
            false.append(false[-1] + _weight(best[:, edges[-2] : edges[-1]], sample))
        if depth == len(scores) or (false[-1] > most).all():
            return best, values.numpy(), [*edges, edges[-1]], np.stack(false)
        depth *= 2
