"""Templates: several images of a subject as one item, and the scores of pairs of items.

Sources: IJB-C protocol; MixBCT and insightface evaluators (their published setting: embedding of
image plus mirror image, times detection score, not normalised before aggregation).
"""

from functools import cached_property

import numpy as np

from bct.errors import BctError
from bct.rows import check_rows, lengths, unit_rows
from bct.threads import each_in_threads

_DENSE_LIMIT = 1 << 28  # scores held at once when all pairs of two sides are computed
_TABLE_LIMIT = 1 << 24  # template ids below it are looked up in a table
_SMALL, _LARGE = 1e-20, 1e38  # sums in between need no scaling in float32
_BLOCK = 1 << 15  # pairs that one thread looks up at a time


class Templates:
    """How N images become T templates.

    Args:
        of_image: int64 (N,), the id of each image's template; any numbers.
        medium: int64 (N,), the medium (video) each image is from; None: each is its own.
        weight: float (N,), detection scores, 0 or more; None: all 1.
        counts: bool (N,), which images count; None: all. The others have an embedding, of which
            nothing is made: no face was found in them.

    Attributes:
        ids: int64 (T,), ascending, of the templates that have an image.
        row: int64 (N,), the template of each image, 0..T-1; -1 if it does not count.
    """

    def __init__(
        self,
        of_image: np.ndarray,
        medium: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        counts: np.ndarray | None = None,
    ):
        of_image = np.asarray(of_image)
        counts = np.ones(len(of_image), bool) if counts is None else counts
        self.images = np.flatnonzero(counts)
        self.row = np.full(len(of_image), -1)
        self.ids, self.row[self.images] = np.unique(of_image[self.images], return_inverse=True)
        self.medium, self.weight = medium, weight

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The row, 0..T-1, of each template id. BctError for one that has no image."""
        if not len(self.ids):
            raise BctError("no template has an image", "give at least one image that counts")
        if self.ids[-1] >= _TABLE_LIMIT or self.ids[0] < 0:
            rows = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        else:  # many times faster than a search per id
            table = np.zeros(self.ids[-1] + 1, np.int64)
            table[self.ids] = np.arange(len(self.ids))
            rows = table[np.clip(ids, 0, self.ids[-1])]
        if len(wrong := np.flatnonzero(self.ids[rows] != ids)):
            raise BctError(
                f"template {np.ravel(ids)[wrong[0]]} has no image",
                "name templates that the protocol's images belong to",
            )
        return rows

    @cached_property
    def _group(self) -> np.ndarray:
        """Which medium of which template each image that counts is in, by number, int64."""
        if self.medium is None:
            return np.arange(len(self.images))
        media, medium = np.unique(self.medium[self.images], return_inverse=True)
        return np.unique(self.row[self.images] * len(media) + medium, return_inverse=True)[1]

    def aggregate(
        self, features: np.ndarray, normalise: bool = False, weighted: bool = True
    ) -> np.ndarray:
        """Unit embeddings of the templates, float32 (T, D), from those of the images (N, D).

        An image counts with its detection score. Images of one medium of a template are averaged,
        the media of a template are summed, the sum is L2-normalised:

            t = n( sum over media m of 1/|m| sum over images i in m of score_i f_i )

        An embedding of zeros is none and counts in no |m|.

        Args:
            normalise: put n(f_i) for f_i. weighted: False puts 1 for score_i.

        Raises BctError when the number of embeddings is not the number of images, for one that is
        not finite, and if all are zeros.
        """
        if len(features) != len(self.row):
            raise BctError(
                f"there are {len(features)} embeddings for {len(self.row)} images",
                "compute the embeddings for this protocol",
            )
        from scipy.sparse import csr_matrix  # a tenth of a second that training need not wait for

        embedded = np.ones(len(features))
        embedded[check_rows(features, alike=False)] = 0
        sizes = np.bincount(self._group, embedded[self.images])
        weights = 1 / np.maximum(sizes, 1)[self._group]
        if weighted and self.weight is not None:
            weights = weights * self.weight[self.images]

        def summed(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
            mixing = csr_matrix(
                (weights.astype(np.float32), (self.row[self.images], self.images)),
                shape=(len(self.ids), len(rows)),
            )
            sums = np.empty((len(self.ids), rows.shape[1]), np.float32)

            def add(part: slice) -> None:
                sums[part] = mixing[part] @ rows  # one thread's work: SciPy's product has no more

            each_in_threads(add, len(self.ids), 1 << 10)
            return sums

        with np.errstate(all="ignore"):
            scale = 1.0
            if normalise:
                length = lengths(features)[self.images]
                scale = np.where(length == 0, 1, length)
            sums = summed(np.asarray(features, np.float32), weights / scale)
            fine = not len(sums) or _SMALL < np.abs(sums).max() < _LARGE
        if not fine:  # NaN is not, either: such rows or weights float32 does not hold
            rows = unit_rows(features) if normalise else features / np.abs(features).max()
            sums = summed(np.asarray(rows, np.float32), weights)
        return unit_rows(sums)


def pair_scores(first: np.ndarray, second: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of items, float32 (P,).

    IJB's pairs are most of the product of a few templates with many, so one matrix product and a
    look-up is far cheaper than P dot products. Sparser lists are scored in blocks.

    Args:
        first, second: unit embeddings (T, D), which may be two models'.
        a, b: int (P,), rows of them.

    Raises BctError for models of two widths.
    """
    check_widths(first, second)
    place_a, left = _used(first, a)
    place_b, right = _used(second, b)
    scores = np.empty(len(a), np.float32)
    if len(left) * len(right) <= min(_DENSE_LIMIT, 16 * len(a)):
        products = (left @ right.T).ravel()
        place_a *= len(right)

        def score(pairs: slice) -> None:
            at = place_a[a[pairs]]
            at += place_b[b[pairs]]
            scores[pairs] = products.take(at)

    else:

        def score(pairs: slice) -> None:
            rows = left[place_a[a[pairs]]], right[place_b[b[pairs]]]  # (B, D) each
            scores[pairs] = np.einsum("bd,bd->b", *rows)

    each_in_threads(score, len(a), _BLOCK)
    return scores


def check_widths(first: np.ndarray, second: np.ndarray) -> None:
    """Raises BctError for embeddings, (., D), of two widths."""
    if first.shape[1] != second.shape[1]:
        raise BctError(
            f"the models' embeddings have {first.shape[1]} and {second.shape[1]} dimensions, "
            "so they can't be compared",
            "give models of equal embedding size",
        )


def _used(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (T,), which of the used items each one is; the used items' features (U, D)."""
    used = np.zeros(len(features), bool)
    used[rows] = True
    return np.cumsum(used) - 1, features[used]
