"""Classes cut over the ranks: which rank has which, and its rows of what all have."""

import torch

from bct.distributed import contiguous_share, rank, world_size
from bct.errors import BctError


def class_share(num_classes: int) -> tuple[int, int]:
    """(first class, number of classes) of this rank. BctError with fewer classes than ranks."""
    if num_classes < world_size():
        raise BctError(
            f"{num_classes} classes can't be cut over {world_size()} ranks", "use fewer ranks"
        )
    return contiguous_share(num_classes, rank(), world_size())


def own_columns(labels: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Position of each label among this rank's classes, -1 if it is another rank's."""
    target = labels - start
    return target.where((target >= 0) & (target < count), -1)


def own_classes(rows: torch.Tensor, num_classes: int) -> torch.Tensor:
    """All classes' rows (C, ...) -> this rank's (n, ...)."""
    if len(rows) != num_classes:
        raise BctError(
            f"the checkpoint has {len(rows)} classes, the data {num_classes}",
            "resume with the data set the run was started with",
        )
    start, count = class_share(num_classes)
    return rows[start : start + count]
