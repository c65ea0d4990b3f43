"""Work on rows in threads, for NumPy and SciPy calls that use one thread each."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(work: Callable[[slice], Result], total: int, block: int) -> Iterator[Result]:
    """work(rows) for every block of 0..total-1, in their order, on as many threads as torch uses.

    NumPy and SciPy let go of the interpreter meanwhile and start no threads in turn. Few results
    are ahead of the one that is asked for: they may be as large as their rows. Nothing is done
    that is not asked for, and an error in a thread is raised here.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for start in range(0, total, block):
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, slice(start, min(start + block, total))))
        while waiting:
            yield waiting.popleft().result()


def each_in_threads(work: Callable[[slice], None], total: int, block: int) -> None:
    """The same for work that leaves its results itself."""
    for _ in in_threads(work, total, block):
        pass
