"""An upgrade for each row of the table of verdicts: made-up embeddings of 40 subjects."""

import numpy as np

from bct.metrics.relevance import ByClass
from bct.protocols.protocol import Pairs, Protocol, Search
from bct.protocols.templates import Templates
from bct.report.study import Study
from support.pages import Nothing

SUBJECTS, PROBES, DIM = 40, 4, 16
GALLERY = np.arange(SUBJECTS * 2) // 2  # two enrolled images of each subject, then its probes
WHOSE = np.concatenate([GALLERY, np.tile(np.arange(SUBJECTS), PROBES)])
ENROLLED = np.arange(len(WHOSE)) < len(GALLERY)


def protocol(kind: str = "pairs", probes: int | None = None) -> Protocol:
    """A template of two images of each subject is enrolled, and asked for by each of its probes.

    Args:
        kind: "pairs" or "search". probes: only so many of them are asked.
    """
    layout = Templates(np.where(ENROLLED, 1000 * WHOSE, 1000 * WHOSE + np.arange(len(WHOSE)) + 1))
    gallery = layout.rows(1000 * np.arange(SUBJECTS))
    probe = layout.row[~ENROLLED][:probes]
    subjects = layout.ids // 1000
    made = Protocol("made", Nothing(len(WHOSE)), layout, subjects=subjects)
    if kind == "search":
        made.search = Search(probe, gallery, ByClass(subjects[probe], subjects[gallery]))
        return made
    first, second = (side.ravel() for side in np.meshgrid(gallery, probe, indexing="ij"))
    made.pairs = Pairs(first, second, subjects[first] == subjects[second])
    return made


def embeddings(
    old: float = 1.0,
    gallery: float = 0.5,
    probes: float = 0.5,
    turn: float = 0.0,
    noise: bool = False,
) -> dict[str, np.ndarray]:
    """Role -> float32 (N, D): each subject's own vector plus noise, the same for both models.

    Args:
        old, gallery, probes: how much noise: of the old model, of the new one's enrolled images and
            of its probes. turn: how far the new space is turned away, 1: unrelated. noise: the new
            model gives nothing but noise.
    """
    rng = np.random.default_rng(0)
    own = rng.standard_normal((SUBJECTS, DIM))[WHOSE]
    strange = rng.standard_normal((2, len(WHOSE), DIM))
    new = own + np.where(ENROLLED, gallery, probes)[:, None] * strange[0]
    away = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    new = np.cos(turn * np.pi / 2) * new + np.sin(turn * np.pi / 2) * new @ away
    models = {"old": own + old * strange[0], "new": strange[1] if noise else new}
    return {role: x.astype(np.float32) for role, x in models.items()}


UPGRADES = {  # the table's `when` -> what leads to it
    "old and new are the same embeddings": {"gallery": 1.0, "probes": 1.0},
    "too few genuine pairs, queries or subjects": {},
    "new queries do no better than chance in either gallery": {"noise": True},
    "unrelated spaces, and the new model is no better": {"turn": 1, "gallery": 1.5, "probes": 1.5},
    "unrelated spaces": {"turn": 1},
    "better in the old gallery, no better in a new one": {"gallery": 4.0, "probes": 0.3},
    "better in the old gallery": {},
    "as good in the old gallery, no better in a new one": {"gallery": 4.0, "probes": 1.0},
    "as good in the old gallery": {"gallery": 0.2, "probes": 1.0},
    "no better in a new gallery": {"gallery": 1.5, "probes": 1.5},
    "as good once a part is re-extracted, in an order that can be had": {"turn": 0.4},
    "anything else": {"turn": 0.7, "gallery": 0.9, "probes": 0.9},
}
SEARCHES = {**UPGRADES, "anything else": {"turn": 0.55, "gallery": 0.8, "probes": 0.8}}


def study(when: str, kind: str = "pairs") -> Study:
    made = protocol(kind, probes=5 if when.startswith("too few") else None)
    return Study.of(made, embeddings(**(SEARCHES if kind == "search" else UPGRADES)[when]))
