"""Batches worked on at the same time on a CPU, each on its share of the cores.

    for result in map_on_cores(work, batches):      # in the order of the batches

A small operation on all cores at once waits for the slowest of them, thousands of times a batch, and longer where
something else wants a core as well. Batches that do not wait for one another lose none of that time. torch lets go of
Python's lock within its operations, so threads are enough.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

from captioning.fast import switch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4  # batches at a time: Python itself runs one of them at a time


def map_on_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """work(item) of each item, in order; up to MOST at a time, one more being taken from `items` ahead.

    `work` is called from other threads: it must not depend on the order of the calls, as drawing random numbers does,
    nor on the caller's modes of torch (inference, autocast). With one core, or one item, it runs in the caller's
    thread. What `work` raises comes in the place of its result.
    """
    cores = torch.get_num_threads()
    count = min(MOST, cores) if switch.enabled else 1
    ahead = iter(items)
    first = list(islice(ahead, min(count, 2)))
    if len(first) < 2:
        yield from map(work, chain(first, ahead))
        return
    pool = ThreadPoolExecutor(count, initializer=use_cores, initargs=(cores // count,))
    coming = deque(pool.submit(work, item) for item in first)
    try:
        for item in ahead:
            coming.append(pool.submit(work, item))
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # use_cores also set what threads that begin later would take


def use_cores(count: int) -> None:
    """Have the operations of torch that this thread calls run on so many cores."""
    torch.get_num_threads()  # sets the thread up, which would later undo what is set here
    torch.set_num_threads(count)
