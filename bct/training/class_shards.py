"""Classes cut over the ranks: which rank has which, and carrying their rows to and from rank 0."""

import torch
import torch.distributed as dist

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


def classes_to_rank0(rows: torch.Tensor, num_classes: int) -> torch.Tensor | None:
    """This rank's rows (n, ...) -> all classes' (C, ...), in class order, on rank 0's CPU.

    Every rank has to call it; the others get None.
    """
    out = None
    if rank() == 0:
        out = torch.empty(num_classes, *rows.shape[1:], dtype=rows.dtype)
        out[: len(rows)] = rows
    for source in range(1, world_size()):
        start, count = contiguous_share(num_classes, source, world_size())
        if rank() == source:
            dist.send(rows.contiguous(), 0)
        elif rank() == 0:
            piece = rows.new_empty(count, *rows.shape[1:])
            dist.recv(piece, source)
            out[start : start + count] = piece
    return out


def own_classes(rows: torch.Tensor, num_classes: int) -> torch.Tensor:
    """All classes' rows (C, ...) -> this rank's (n, ...)."""
    if len(rows) != num_classes:
        raise BctError(
            f"the checkpoint has {len(rows)} classes, the data {num_classes}",
            "resume with the data set the run was started with",
        )
    start, count = class_share(num_classes)
    return rows[start : start + count]
