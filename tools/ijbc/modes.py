"""The eight ways in which MixBCT's script makes templates of images."""

from itertools import product
from typing import NamedTuple


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
