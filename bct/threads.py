"""Work on rows in threads of our own; torch, NumPy and SciPy use one thread in each of them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(work: Callable[[slice], Result], total: int, block: int) -> Iterator[Result]:
    """work(rows) for every block of 0..total-1, in their order, on as many threads as torch uses.

    The libraries let go of the interpreter meanwhile. Threads that torch started between two calls
    of theirs would go on spinning and take the cores from them: here it starts none. Few results
    are ahead of the one that is asked for: they may be as large as their rows. Nothing is done
    that is not asked for, and an error in a thread is raised here.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque = deque()
            for start in range(0, total, block):
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, slice(start, min(start + block, total))))
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # threads that torch starts later inherit the last number


def each_in_threads(work: Callable[[slice], None], total: int, block: int) -> None:
    """The same for work that leaves its results itself."""
    for _ in in_threads(work, total, block):
        pass
