"""The figures of one test, from scores and unit embeddings, as plain values."""

import numpy as np

from bct.errors import BctError
from bct.metrics.scores import FARS, Identification, identification, rate_name, roc
from bct.protocols.protocol import Side

FPIRS = np.concatenate([10.0 ** (-4 + 0.04 * np.arange(100)), [1.0]])


def verification(scores: np.ndarray, genuine: np.ndarray, rule: str = "strict") -> dict:
    """1:1 result: TAR at FAR 1e-6 .. 1e-1, with the FAR really reached and the threshold; AUC."""
    points, area = roc(scores, genuine, FARS, rule)
    return {
        "tar": {rate_name(p.target): p.tar for p in points},
        "reached_far": {rate_name(p.target): p.far for p in points},
        "threshold": {rate_name(p.target): p.threshold for p in points},
        "auc": area,
    }


def resolved(genuine: np.ndarray, far: float) -> bool:
    """Whether so low a FAR allows one false accept among these pairs, bool (P,)."""
    return resolved_by(int(np.count_nonzero(~genuine)), far)


def resolved_by(impostors: int, far: float) -> bool:
    """The same of a number of impostor pairs."""
    return far * impostors * (1 + 1e-12) >= 1  # 1 / n times n may be below 1


def open_set(
    gallery_model: np.ndarray,
    probe_model: np.ndarray,
    galleries: list[Side],
    probes: Side,
    rule: str = "strict",
) -> dict:
    """1:N result: ranks and TPIR at FPIR per gallery and their mean; ranks in the joint gallery.

    Args:
        gallery_model, probe_model: unit embeddings of all items (T, D); for a cross test those of
            the old model and of the new one.

    Raises BctError: see identification; a gallery of a single item.
    """
    for gallery in galleries:
        if len(gallery.rows) < 2:
            raise BctError(
                f"{gallery.name} has a single template: no probe can find a wrong one",
                "give a gallery of two subjects or more",
            )
    queries = probe_model[probes.rows]
    result: dict = {"fpir": FPIRS.tolist()}
    scores, per_gallery = [], []
    for gallery in galleries:
        scores.append(queries @ gallery_model[gallery.rows].T)
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
