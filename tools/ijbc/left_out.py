"""What of IJB's files counts for nothing: faces that were not found, pairs of a template with
itself, probes that are enrolled. All of it is counted and said, see Protocol.remarks.

A template that finds its own pictures proves nothing: noise would have TAR 1. A face that was not
found has nothing to be aligned by, so its picture has no embedding.
"""

from itertools import combinations
from pathlib import Path

import numpy as np

from bct.errors import BctError
from bct.protocols.protocol import Side
from bct.protocols.templates import Templates
from tools.ijbc.crops import LooseCrops


def counting(
    boxes: Path, crops: LooseCrops, scores: np.ndarray, template: np.ndarray
) -> np.ndarray:
    """Which images count, bool (N,): those with a face, in a template that has some weight.

    Raises BctError: landmarks of which some are numbers, a face whose score is negative or not
    finite; no image that counts.
    """
    known = np.isfinite(crops.landmarks).reshape(len(crops), -1)
    partly = known.any(1) & ~known.all(1)
    if partly.any():
        raise BctError(
            f"{boxes}, line {int(partly.argmax()) + 1}: only some of its landmarks are numbers",
            "restore the file, or give NaN for all of a face that was not found",
        )
    wrong = crops.found & ~(np.isfinite(scores) & (scores >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise BctError(
            f"{boxes}, line {at + 1}: its detection score is {scores[at]:g}",
            "give scores of 0 or more, or -1 for all of a face that was not found",
        )
    of_image = np.unique(template, return_inverse=True)[1]
    weight = np.bincount(of_image, np.where(crops.found, scores, 0))
    counts = crops.found & (weight[of_image] > 0)
    if not counts.any():
        what = "no image has a face" if not crops.found.any() else "all scores are 0"
        raise BctError(f"{boxes}: {what}", "give landmarks in pixels, and scores above 0")
    return counts


def without_face(boxes: Path, crops: LooseCrops) -> list[str]:
    """A remark on the images that have no face, if there are any."""
    lost = np.flatnonzero(~crops.found)
    if not len(lost):
        return []
    point = np.isfinite(crops.landmarks[lost[0]]).all()
    why = "are one point" if point else "are not numbers"
    return [
        f"{len(lost):,} of {len(crops):,} images are left out of their templates, as they have no "
        f"face: {boxes.name}, line {lost[0] + 1}: its five landmarks {why}"
        f"{more(lost[1:] + 1, 'line')}."
    ]


def more(others: np.ndarray, what: str) -> str:
    """Names a few more numbers of lines or templates."""
    if not len(others):
        return ""
    return f"; {what}s {', '.join(map(str, others[:4]))}{', ...' * (len(others) > 4)}, too"


def sharing(crops: LooseCrops, templates: Templates) -> np.ndarray:
    """The keys, see key_of, of pairs of templates that share an image, int64 (S,), ascending: a
    file of one name, aligned by the same landmarks."""
    if len(set(crops.names)) == len(crops.names):
        return np.zeros(0, np.int64)
    owners: dict[tuple[str, bytes], set[int]] = {}
    for index in templates.images.tolist():
        image = crops.names[index], crops.landmarks[index].tobytes()
        owners.setdefault(image, set()).add(int(templates.row[index]))
    both = [pair for rows in owners.values() for pair in combinations(sorted(rows), 2)]
    first, second = np.array(both, np.int64).reshape(-1, 2).T
    return np.unique(key_of(first, second, templates))


def contradicted(key: np.ndarray, genuine: np.ndarray) -> int | None:
    """The first impostor pair that is genuine elsewhere, of pairs' keys (P,); None if none is."""
    mask = (1 << 20) - 1  # a look into a table rules most of them out: IJB-C has 16 million
    seen = np.zeros(mask + 1, bool)
    seen[key[genuine] & mask] = True
    suspects = np.flatnonzero(seen[key & mask] & ~genuine)
    found = suspects[np.isin(key[suspects], key[genuine])]
    return int(found[0]) if len(found) else None


def key_of(first: np.ndarray, second: np.ndarray, templates: Templates) -> np.ndarray:
    """A number for each pair of templates, whichever comes first."""
    return np.minimum(first, second) * len(templates.ids) + np.maximum(first, second)


def not_enrolled(
    file: Path,
    probes: Side,
    galleries: list[Side],
    templates: Templates,
    shared: np.ndarray,
    remarks: list[str],
) -> Side:
    """The probes that are neither a gallery's template nor share an image with their subject's.

    Args:
        file: of the probes. shared: see sharing. remarks: gets one about what is left out.

    Raises BctError: a template that is another subject's in a gallery; no probe is left; a gallery
    that has all subjects of the probes, or none.
    """
    enrolled = np.concatenate([side.rows for side in galleries])
    subjects = np.concatenate([side.subjects for side in galleries])
    where = np.repeat([side.name for side in galleries], [len(side.rows) for side in galleries])
    of_row = dict(zip(enrolled.tolist(), zip(subjects.tolist(), where, strict=True), strict=True))
    of_subject = dict(zip(subjects.tolist(), enrolled.tolist(), strict=True))
    own = np.array([of_subject.get(subject, -1) for subject in probes.subjects.tolist()])
    for row, subject in zip(probes.rows.tolist(), probes.subjects.tolist(), strict=True):
        other, name = of_row.get(row, (subject, ""))
        if other != subject:
            raise BctError(
                f"template {templates.ids[row]} is of subject {other} in {name}, of {subject} in "
                f"{file.name}",
                "give each template one subject",
            )
    itself = np.isin(probes.rows, enrolled)
    twice = (own >= 0) & np.isin(key_of(probes.rows, own, templates), shared)
    left_out = itself | twice
    if left_out.all():
        raise BctError(
            f"{file.name}: all probes are templates of a gallery, each would find itself",
            "give probes that are not enrolled",
        )
    if left_out.any():
        which = templates.ids[probes.rows[left_out]]
        remarks.append(
            f"{len(which):,} of {len(left_out):,} probes are left out, as they or images of "
            f"theirs are enrolled, too: template {which[0]}{more(which[1:], 'template')}."
        )
    kept = Side(probes.name, probes.rows[~left_out], probes.subjects[~left_out])
    for side in galleries:
        mated = np.isin(kept.subjects, side.subjects)
        if mated.all() or not mated.any():
            what = "all" if mated.all() else "none"
            raise BctError(
                f"{side.name} has {what} of the subjects of {file.name}, so open-set search is "
                "undefined",
                "give probes of subjects in the gallery, and of others",
            )
    return kept
