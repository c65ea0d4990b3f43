"""What may be done beside plain ranking: embeddings that are whitened, queries that are expanded,
distances that are re-ranked.

The last two look at the gallery that is searched, so a mixed gallery is refined as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bct.errors import BctError
from bct.files import sha256_file
from bct.metrics.expansion import expanded
from bct.metrics.relevance import Relevance
from bct.metrics.reranking import check_reranking, retrieve_reranked
from bct.metrics.retrieval import Retrieval, retrieve_readings
from bct.metrics.whitening import Whitening, fit_whitening
from bct.models.model import Model
from bct.protocols.protocol import Search
from bct.protocols.roles import Roles
from bct.stored.vector_files import open_vectors


class Refine(NamedTuple):
    """expand: (alpha, k) of alpha query expansion. rerank: (k1, k2, weight) of k-reciprocal
    re-ranking; parity: of the latter. None: not done."""

    expand: tuple[float, int] | None = None
    rerank: tuple[int, int, float] | None = None
    parity: str = "corrected"

    @property
    def ranks(self) -> bool:
        """Whether anything is done."""
        return self.expand is not None or self.rerank is not None

    @property
    def entries(self) -> dict[str, Any]:
        """What is done, as JSON has it."""
        out: dict[str, Any] = {}
        if self.expand is not None:
            out["expand"] = list(self.expand)
        if self.rerank is not None:
            out |= {"rerank": list(self.rerank), "rerank_parity": self.parity}
        return out

    @property
    def sentence(self) -> str:
        """The same for people; "" if nothing is done."""
        said = []
        if self.expand is not None:
            said.append("queries expanded by their best {1} (alpha {0:g})".format(*self.expand))
        if self.rerank is not None:
            half = ", in float16 as published" if self.parity == "published" else ""
            said.append(
                "re-ranked (k1 {}, k2 {}, lambda {:g}{half})".format(*self.rerank, half=half)
            )
        return "; ".join(said)


def check_refined(refine: Refine, asked: Search, metric: str) -> None:
    """Raises BctError for a search that can't be refined so."""
    if not refine.ranks:
        return
    if metric != "cosine":
        raise BctError(
            f"--expand and --rerank are of cosine similarity, not of {metric}",
            "leave --metric out, or them",
        )
    if getattr(asked.relevance, "leave_one_out", False):
        raise BctError(
            "--expand and --rerank want queries that are not in the gallery",
            "give a gallery of its own, --gallery",
        )
    if refine.rerank is not None:
        check_reranking(len(asked.queries) + len(asked.gallery), *refine.rerank, refine.parity)


def refined_readings(
    query: np.ndarray,
    gallery: np.ndarray,
    readings: Mapping[str, Relevance],
    ks: tuple[int, ...],
    way: str,
    refine: Refine,
) -> dict[str, Retrieval]:
    """What bct.metrics.retrieval.retrieve_readings gives, of queries (Q, D), a gallery (G, D)."""
    if refine.expand is not None:
        alpha, k = refine.expand
        query = expanded(query, gallery, n=k, alpha=alpha)
    if refine.rerank is None:
        return retrieve_readings(query, gallery, readings, "cosine", ks, way)
    k1, k2, weight = refine.rerank
    how = {"k1": k1, "k2": k2, "weight": weight, "parity": refine.parity}
    return retrieve_reranked(query, gallery, readings, ks, way, **how)


def whitening_rows(
    files: Sequence[str], models: Mapping[str, Model], roles: Roles
) -> dict[str, tuple[str, np.ndarray]]:
    """Label of each model -> (SHA-256 of a file, its rows (n, D)), of which a whitening is learnt.

    Args:
        files: none, or one of the space that models share, so that both sides of a cross test go
            through one map; and one of the model alone, whose space is another one.

    Raises BctError for rows of another width than a model's.
    """
    if not files:
        return {}
    rows_of = [open_vectors(file)[0] for file in files]  # it says what is wrong with a file
    found = [(sha256_file(file), rows) for file, rows in zip(files, rows_of, strict=True)]
    out = {label: found[-1 if label == roles.alone else 0] for label in models}
    for label, (_, rows) in out.items():
        if rows.shape[1] != models[label].width:
            raise BctError(
                f"--whiten has rows of {rows.shape[1]} dimensions, {label} has "
                f"{models[label].width}",
                "give a training set's embeddings by a model of the space that is compared",
            )
    return out


def fitted(rows: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, Whitening]:
    """Label -> its whitening; each is learnt once."""
    known = {digest: fit_whitening(of) for digest, of in dict(rows.values()).items()}
    return {label: known[digest] for label, (digest, _) in rows.items()}
