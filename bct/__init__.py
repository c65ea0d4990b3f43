"""bct: backward-compatible training of embedding models."""

import os
from importlib.util import find_spec

from bct.errors import BctError

__version__ = "0.1.0"


def _check_backbones() -> None:
    """Raises BctError if `import backbones` gives another package of that name than ours."""
    beside = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    spec = find_spec("backbones")
    places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
    if [os.path.realpath(place) for place in places] != [os.path.join(beside, "backbones")]:
        found = ", ".join(places) or "nowhere"
        raise BctError(
            f"`import backbones` finds {found}, not bct's own networks in {beside}/backbones",
            "rename what hides them, or take its folder off PYTHONPATH and start Python elsewhere",
        )


_check_backbones()
