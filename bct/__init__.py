"""bct: backward-compatible training of embedding models.

    old, new = bct.load("old/model.pt"), bct.load("new/model.pt")
    protocol = bct.open_protocol("lfw.bin")
    e = bct.embed({"old": old, "new": new}, protocol.images)
    print(bct.compare(protocol, old=e["old"], new=e["new"]).table())

docs/api.md is a walk through all of it. The names below are imported when they are first used.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

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

_FUNCTIONS = ("load", "embed", "open_images", "open_protocol", "compare", "write_report")
_FUNCTIONS += ("load_method",)  # public ones, of bct/api.py; none has a submodule's name
_PACKAGES = ("adapters", "metrics")
__all__ = [*_FUNCTIONS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module("bct.api"), name)
    if name in _PACKAGES:
        return import_module(f"bct.{name}")
    raise AttributeError(f"module 'bct' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
