"""Maps from one model's space into another's, see bct/adapters/base.py.

An adapter is one file, named as its class in lower case: bct.adapters.Procrustes is found in
bct/adapters/procrustes.py, when it is asked for.
"""

from importlib import import_module
from importlib.util import find_spec


def __getattr__(name: str) -> type:
    if name[:1].isupper() and name.isalnum() and find_spec(f"bct.adapters.{name.lower()}"):
        return getattr(import_module(f"bct.adapters.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
