"""From image embeddings to template embeddings, and from those to 1:1 and 1:N results.

Sources: IJB-C protocol; MixBCT and insightface evaluators (their published setting: embedding of
image plus mirror image, times detection score, not normalised before aggregation).
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from bct.errors import BctError
from bct.metrics.scores import FARS, Identification, identification, rate_name, roc
from bct.threads import each_in_threads
from tools.ijbc.protocol import Gallery, Protocol

FPIRS = np.concatenate([10.0 ** (-4 + 0.04 * np.arange(100)), [1.0]])
_DENSE_LIMIT = 1 << 28  # scores held at once when all pairs of two sides are computed
_TABLE_LIMIT = 1 << 24  # template ids below it are looked up in a table
_BLOCK = 1 << 15  # pairs that one thread looks up at a time


class Templates(NamedTuple):
    """ids int64 (T,) ascending; features float32 (T, D), unit length."""

    ids: np.ndarray
    features: np.ndarray

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row number of each template id."""
        if self.ids[-1] >= _TABLE_LIMIT:
            return np.searchsorted(self.ids, ids)
        table = np.zeros(self.ids[-1] + 1, np.int64)  # many times faster than a search per pair
        table[self.ids] = np.arange(len(self.ids))
        return table[ids]


class Mode(NamedTuple):
    """How images become templates; N0D1F1 is the published setting, and ours.

    normalise (N): image embeddings are L2-normalised first, so that their norms don't weigh them.
    detector (D): each counts with its detection score.
    mirror (F): the embedding is that of the image plus that of its mirror image.

    The letters are those of MixBCT's script. In insightface's, N means the opposite.
    """

    normalise: bool = False
    detector: bool = True
    mirror: bool = True

    def __str__(self) -> str:
        return "N{:d}D{:d}F{:d}".format(*self)


PUBLISHED = Mode()
MODES = tuple(Mode(*map(bool, switches)) for switches in product((0, 1), repeat=3))


def template_features(
    features: np.ndarray, protocol: Protocol, mode: Mode = PUBLISHED
) -> Templates:
    """Aggregates image embeddings (N, D) to templates.

    An image counts with its detection score. Images of one medium (video) of a template are
    averaged, the media of a template are summed, the sum is L2-normalised:

        t = n( sum over media m of 1/|m| sum over images i in m of score_i f_i )

    Args:
        mode: its `normalise` puts n(f_i) for f_i, without its `detector` score_i is 1. `mirror`
            is for whoever makes the features.

    Raises BctError when the number of embeddings is not the number of images.
    """
    if len(features) != len(protocol.names):
        raise BctError(
            f"there are {len(features)} embeddings for {len(protocol.names)} images",
            "compute the embeddings for this protocol",
        )
    ids, template = np.unique(protocol.templates, return_inverse=True)
    media, medium = np.unique(protocol.medias, return_inverse=True)
    _, group, sizes = np.unique(
        template * len(media) + medium, return_inverse=True, return_counts=True
    )
    features = np.asarray(features, np.float32)
    weights = 1 / sizes[group]
    if mode.detector:
        weights = weights * protocol.detector
    if mode.normalise:
        norms = np.sqrt(np.einsum("nd,nd->n", features, features))
        weights = weights / np.maximum(norms, 1e-12)
    images = np.arange(len(features))
    mixing = csr_matrix(
        (weights.astype(np.float32), (template, images)), shape=(len(ids), len(features))
    )
    sums = np.empty((len(ids), features.shape[1]), np.float32)

    def add(rows: slice) -> None:
        sums[rows] = mixing[rows] @ features  # one thread's work: SciPy's product has no more

    each_in_threads(add, len(ids), 1 << 10)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return Templates(ids, sums / np.maximum(norms, 1e-12))


def pair_scores(first: Templates, second: Templates, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of template ids, float32 (P,); `first` and `second` may be two models'.

    IJB's pairs are most of the product of a few templates with many, so one matrix product and a
    look-up is far cheaper than P dot products. Sparser lists are scored in blocks.
    """
    if first.features.shape[1] != second.features.shape[1]:
        raise BctError(
            f"the models' embeddings have {first.features.shape[1]} and "
            f"{second.features.shape[1]} dimensions, so they can't be compared",
            "give models of equal embedding size",
        )
    a, place_a, left = _used(first, a)
    b, place_b, right = _used(second, b)
    scores = np.empty(len(a), np.float32)
    if len(left) * len(right) <= min(_DENSE_LIMIT, 16 * len(a)):
        product = (left @ right.T).ravel()
        place_a *= len(right)

        def score(pairs: slice) -> None:
            at = place_a[a[pairs]]
            at += place_b[b[pairs]]
            scores[pairs] = product.take(at)

    else:

        def score(pairs: slice) -> None:
            rows = left[place_a[a[pairs]]], right[place_b[b[pairs]]]  # (B, D) each
            scores[pairs] = np.einsum("bd,bd->b", *rows)

    each_in_threads(score, len(a), _BLOCK)
    return scores


def _used(model: Templates, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is used of a model, without a sort of every pair.

    Returns:
        ids (P,), the given ones, or their rows where they are too large for a table; int64
        (largest + 1,), which of the used templates an id is; their features, float32 (U, D).
    """
    known = model.ids
    if known[-1] >= _TABLE_LIMIT:
        ids, known = model.rows(ids), np.arange(len(known))
    used = np.zeros(known[-1] + 1, bool)
    used[ids] = True
    features = model.features[used[known]]
    if np.count_nonzero(used) > len(features):
        raise BctError(
            f"template {np.setdiff1d(np.flatnonzero(used), known)[0]} has no embedding",
            "score the pairs of the protocol that the templates come from",
        )
    return ids, np.cumsum(used) - 1, features


def verification(scores: np.ndarray, genuine: np.ndarray, rule: str = "strict") -> dict:
    """1:1 result: TAR at FAR 1e-6 .. 1e-1, with the FAR really reached and the threshold; AUC."""
    points, area = roc(scores, genuine, FARS, rule)
    return {
        "tar": {rate_name(p.target): p.tar for p in points},
        "reached_far": {rate_name(p.target): p.far for p in points},
        "threshold": {rate_name(p.target): p.threshold for p in points},
        "auc": area,
    }


def open_set(
    gallery_model: Templates,
    probe_model: Templates,
    galleries: list[Gallery],
    probes: Gallery,
    rule: str = "strict",
) -> dict:
    """1:N result: ranks and TPIR at FPIR per gallery and their mean; ranks in the joint gallery.

    Cross test: galleries from the old model, probes from the new one.
    """
    queries = probe_model.features[probe_model.rows(probes.templates)]
    result: dict = {"fpir": FPIRS.tolist()}
    scores, per_gallery = [], []
    for gallery in galleries:
        rows = gallery_model.features[gallery_model.rows(gallery.templates)]
        scores.append(queries @ rows.T)
        per_gallery.append(
            identification(scores[-1], probes.subjects, gallery.subjects, FPIRS, rule=rule)
        )
        result[gallery.name] = _summary(per_gallery[-1])
    hits = {k: sum(g.hits[k] for g in per_gallery) for k in per_gallery[0].hits}
    mated = sum(g.mated for g in per_gallery)  # in IJB all probes; one of no gallery is none
    result["mean"] = {
        **{f"top{k}": count / mated for k, count in hits.items()},
        "tpir": np.mean([g.tpir for g in per_gallery], axis=0).tolist(),
    }
    joint = identification(
        np.concatenate(scores, axis=1),
        probes.subjects,
        np.concatenate([g.subjects for g in galleries]),
        FPIRS[:0],
    )
    result["mixed"] = {f"top{k}": count / joint.mated for k, count in joint.hits.items()}
    return result


def _summary(gallery: Identification) -> dict:
    return {
        **{f"top{k}": count / gallery.mated for k, count in gallery.hits.items()},
        "mated": gallery.mated,
        "nonmated": gallery.nonmated,
        "tpir": gallery.tpir.tolist(),
        # JSON has no -inf, the threshold that lets everybody in
        "threshold": np.maximum(gallery.thresholds, np.finfo(np.float32).min).tolist(),
    }
