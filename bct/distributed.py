"""Processes, devices and random streams. Without torchrun there is one process and no group.

Every random draw of a run is a pure function of (seed, what for, rank, epoch or step): see
`generator`. Nothing has to be saved to reproduce or resume a stream.
"""

import ctypes
import datetime
import os
import signal
import sys
import threading
import time
from typing import NoReturn

import torch
import torch.distributed as dist

from bct.errors import BctError

_GRACE = 30.0  # seconds in which a rank without a parent may write a checkpoint
_WATCH = 0.5  # seconds between two looks


def setup(timeout: float = 10) -> torch.device:
    """Joins torchrun's process group if there is one and returns this process's device.

    NCCL on GPUs, gloo on CPUs. Plain `python` (no RANK in the environment) stays a single process
    without any process group.

    Args:
        timeout: minutes that a collective waits for the other ranks before it fails.
    """
    cuda = torch.cuda.is_available()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # all batches have one shape
    else:
        _keep_freed_memory()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_parent()
    if "RANK" in os.environ and not dist.is_initialized():
        store, rank, world_size = _store(timeout)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            device_id=device if cuda else None,
            timeout=datetime.timedelta(minutes=timeout),
        )
    return device


def _end_with_parent() -> None:
    """Ends this process when its parent has: with SIGTERM, and _GRACE seconds later for good.

    torchrun kills its ranks, but one that is killed itself can't.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH)
    print(f"error: process {parent}, which has started this rank, is gone", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(128 + signal.SIGTERM)


def _store(timeout: float) -> tuple[dist.Store, int, int]:
    """The key-value store through which ranks find each other, this rank, and their number.

    torchrun's outlives the ranks. With --max-restarts the new ones must not find the addresses of
    the dead in it (torch 2.15 lets them), so every attempt has keys of its own.
    """
    wait = datetime.timedelta(minutes=timeout)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=wait))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt_{attempt}", store)
    if rank == 0:
        store.set("world_size", str(world_size))
    elif (expected := int(store.get("world_size"))) != world_size:
        raise BctError(
            f"rank {rank} was started for {world_size} ranks, rank 0 for {expected}",
            "give all of them the same WORLD_SIZE, or start them with torchrun",
        )
    return store, rank, world_size


def fail(report: str) -> NoReturn:
    """Ends this rank of several with exit code 1. Only the first rank of the job to fail prints.

    The others mostly fail because of it: their collectives break. The process ends here and now,
    since threads and destructors of a broken process group may wait for ever.
    """
    try:
        first = _store(timeout=0.1)[0].add("failed", 1) == 1
    except (RuntimeError, ValueError, BctError):  # no store to ask, or not for us
        first = True
    if first:
        print(f"rank {rank()}: {report}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_peer_failure(error: Exception) -> bool:
    """Whether an exception is a collective's: another rank has died or does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def writes() -> bool:
    """Whether this process writes what all share: rank 0, or one that has joined no group, even if
    a cluster's launcher has given it a number."""
    return world_size() == 1 or is_main()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def say(text: str) -> None:
    """Prints a line from rank 0 only."""
    if is_main():
        print(text, flush=True)


def agree(**values: str) -> None:
    """Raises BctError, on all ranks, if they don't all have the same values."""
    everyone = all_gather_object(values)
    for other, theirs in enumerate(everyone):
        for key, mine in everyone[0].items():
            if theirs[key] != mine:
                raise BctError(
                    f"ranks 0 and {other} differ in {key}: {mine[:200]} and {theirs[key][:200]}",
                    "start all ranks with the same code, config and data",
                )


def all_gather_object(value: object) -> list:
    """Every rank's value, in rank order. For small things: they are pickled."""
    everyone = [value]
    if world_size() > 1:
        everyone = [None] * world_size()
        dist.all_gather_object(everyone, value)
    return everyone


def contiguous_share(total: int, index: int, parts: int) -> tuple[int, int]:
    """(start, length) of share `index` when `total` items are cut into `parts` runs, the first
    `total % parts` of which are one longer."""
    length, rest = divmod(total, parts)
    return length * index + min(index, rest), length + (index < rest)


def all_reduce(tensor: torch.Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> torch.Tensor:
    """Reduces in place over ranks and returns the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates the ranks' equally shaped tensors along the first dimension. No gradient."""
    if world_size() == 1:
        return tensor
    out = tensor.new_empty(world_size() * tensor.shape[0], *tensor.shape[1:])
    dist.all_gather_into_tensor(out, tensor.contiguous())
    return out


def all_gather_shares(local: torch.Tensor, total: int) -> torch.Tensor:
    """Concatenates the ranks' contiguous shares of `total` rows. No gradient."""
    parts = world_size()
    longest = contiguous_share(total, 0, parts)[1]
    padded = local.new_zeros(longest, *local.shape[1:])
    padded[: len(local)] = local
    gathered = all_gather(padded).view(parts, longest, *local.shape[1:])
    return torch.cat([gathered[r, : contiguous_share(total, r, parts)[1]] for r in range(parts)])


def shares_to_rank0(local: torch.Tensor, total: int) -> torch.Tensor | None:
    """The ranks' contiguous shares of `total` rows -> (total, ...), in order, on rank 0's CPU.

    Every rank has to call it; the others get None. No rank's device holds more than one share.
    """
    out = None
    if is_main():
        out = torch.empty(total, *local.shape[1:], dtype=local.dtype)
        out[: len(local)] = local
    for source in range(1, world_size()):
        start, count = contiguous_share(total, source, world_size())
        if rank() == source:
            dist.send(local.contiguous(), 0)
        elif is_main():
            piece = local.new_empty(count, *local.shape[1:])
            dist.recv(piece, source)
            out[start : start + count] = piece
    return out


def reduce_scatter(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of (world_size * B, ...), of which each rank gets its own B rows."""
    if world_size() == 1:
        return tensor
    if tensor.device.type == "cpu":
        # gloo's own sends the whole tensor around and cuts it then: twice the bytes
        parts = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        dist.all_to_all_single(parts, tensor.contiguous())
        return parts.unflatten(0, (world_size(), -1)).sum(0)
    out = tensor.new_empty(tensor.shape[0] // world_size(), *tensor.shape[1:])
    dist.reduce_scatter_tensor(out, tensor.contiguous())
    return out


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor) -> torch.Tensor:
        return all_reduce(local.clone())

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return all_reduce(grad.clone())


def sum_over_ranks(local: torch.Tensor) -> torch.Tensor:
    """Sum with a gradient, for a loss that each rank averages over its own rows."""
    return _SumOverRanks.apply(local) if world_size() > 1 else local


def joined_parts(part: torch.Tensor) -> torch.Tensor:
    """Sum of all ranks' parts of one loss, the same on all of them, with the gradient of this
    rank's part: for rows that each rank has for itself, or that gather_rows gives."""
    if world_size() == 1:
        return part
    return part + (all_reduce(part.detach().clone()) - part.detach())


def mean_of_chosen(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean of the chosen values of all ranks, in the sense that DDP's mean over ranks of the result
    and its gradient is the mean over the global batch. 0 when no rank has chosen any.

    Args:
        values: (B,); chosen: bool (B,).
    """
    count = all_reduce(chosen.sum(dtype=torch.float32))
    return torch.where(chosen, values, 0).sum() * world_size() / count.clamp_min(1)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor) -> torch.Tensor:
        return all_gather(local)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return reduce_scatter(grad) * world_size()


def gather_rows(local: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, (B, D) -> (world_size * B, D), with a gradient.

    For a loss that is sharded over ranks (each rank differentiates its own part of one global-mean
    loss): the backward pass sums the ranks' partial gradients and multiplies by world_size, so
    that the mean DDP takes over ranks is the gradient of the global loss. A loss that every rank
    computes as a local mean must use its local rows instead, or it is weighted world_size times.
    """
    return _GatherRows.apply(local) if world_size() > 1 else local


class _ShareRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor) -> torch.Tensor:
        return all_gather(local)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return reduce_scatter(grad)


def share_rows(local: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, (B, D) -> (world_size * B, D), with a gradient, for a loss that each rank
    averages over its own rows, holding them against everybody's: what all ranks' losses send back
    to a row is added up, and the mean DDP takes is the gradient of the mean of the losses."""
    return _ShareRows.apply(local) if world_size() > 1 else local


def average_buffers(module: torch.nn.Module) -> None:
    """Averages floating-point buffers (batch-norm statistics) over ranks, in place, but those of
    modules that are `frozen`."""
    if world_size() > 1:
        for part in module.modules():
            for buffer in part.buffers(recurse=False):
                if buffer.is_floating_point() and not getattr(part, "frozen", False):
                    all_reduce(buffer).div_(world_size())


def _keep_freed_memory() -> None:
    """Tells glibc to reuse freed blocks instead of returning them to the kernel.

    Activations of tens of MB are otherwise mapped and page-faulted anew in every step: training a
    small network on a CPU takes 1.4 to 1.9 times as long.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
