"""Market-1501's file names, which say who is seen by which camera: 0002_c1s1_000451_03.jpg."""

import os
import re

from bct.errors import BctError, printable

JUNK = -1  # the number of what is neither a person nor a distractor: never counted
DISTRACTOR = 0  # the number of what stays in a gallery although nobody asks for it

_NAME = re.compile(rb"(-1|\d{1,9})_c(\d{1,4})(?:s\d+)?_[^/]+", re.ASCII)


def parse(name: bytes) -> tuple[int, int]:
    """A person's number and a camera's, the camera as in the name: 1 to 6. DukeMTMC's names, which
    have no sequence behind the camera, are read, too.

    Args:
        name: of a file; folders before it don't count.

    Raises:
        BctError: a name of another kind.
    """
    found = _NAME.fullmatch(os.path.basename(name))
    if found is None or int(found[2]) == 0:
        raise BctError(
            f"{printable(os.fsdecode(name))} is no name of Market-1501: it does not say which "
            "person and which camera",
            "call it <person>_c<camera>s<sequence>_<frame>_<box>.jpg, or move it away",
        )
    return int(found[1]), int(found[2])
