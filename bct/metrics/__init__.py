"""Pure functions on scores, ranks and embeddings; nothing here knows a file or a model.

The names below are imported when they are first used; none is that of a module.
"""

from importlib import import_module
from typing import Any

_FROM = {
    "scores": ("tar_at_far", "auc", "roc", "identification"),
    "folds": ("accuracy",),
    "retrieval": ("retrieve", "cmc"),
    "relevance": ("ByClass", "ByItem"),
    "compatibility": ("compatible", "update_gain", "price", "p_up", "p_comp", "p_1"),
    "chain": (
        *("average_compatibility", "average_quality", "backward_transfer", "forward_transfer"),
    ),
    "flips": ("verification_flips", "threshold_drift"),
    "bootstrap": ("bootstrap_tar",),
    "percentiles": ("interval",),
    "label_free": ("procrustes_residual", "neighbour_overlap"),
}
_MODULE = {name: module for module, names in _FROM.items() for name in names}
__all__ = list(_MODULE)


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(import_module(f"bct.metrics.{_MODULE[name]}"), name)
    raise AttributeError(f"module 'bct.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
