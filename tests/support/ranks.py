"""Runs a function on several gloo ranks, as torchrun would, and returns what each rank returned."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# ranks are forked from a clean process that has imported everything once: seconds less per call
IMPORTED = "torch torch._dynamo bct.train tools.ijbc.report bct.report.page hypothesis pytest"
multiprocessing.set_forkserver_preload(IMPORTED.split())


def run_on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """function must be importable (top level of a module); its results must be picklable by torch.

    One process and no process group when world_size is 1.
    """
    if world_size == 1:
        return [function(*args)]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _entry,
            (world_size, folder, function, args),
            nprocs=world_size,
            start_method="forkserver",
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world_size)]


def _entry(rank: int, world_size: int, folder: str, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
