"""The protocols of landmark retrieval by their names."""

from pathlib import Path

from bct.errors import BctError
from bct.protocols.gldv2 import open_gldv2
from bct.protocols.protocol import Protocol
from bct.protocols.revisited import open_revisited

SPLITS = ("private", "public")


def open_landmarks(
    root: str | Path,
    name: str,
    *,
    standard: bool = False,
    split: str | None = None,
    distractors: str | Path | None = None,
    stored: bool = False,
    lacking: bool = False,
) -> Protocol:
    """Opens gldv2, or roxford5k, rparis6k or any other set with a gnd_<name>.pkl.

    Args:
        split: of gldv2, one of SPLITS; None: private. standard, distractors: of the others.
        stored, lacking: see open_revisited.

    Raises BctError: an option of the other kind; what the two readers refuse.
    """
    if name == "gldv2":
        if standard or distractors is not None:
            raise BctError(
                "gldv2 has neither boxes of its queries nor distractors",
                "leave out --standard, --boxes and --distractors, or give roxford5k or rparis6k",
            )
        return open_gldv2(root, split or "private", stored=stored, lacking=lacking)
    if split is not None:
        raise BctError(f"{name} has no splits", "leave --split out: it is of gldv2")
    return open_revisited(root, name, standard, distractors, stored=stored, lacking=lacking)
