"""Sharing work among processes of this machine."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice

from captioning.errors import UserError
from captioning.signals import serve


@contextmanager
def in_processes(work: Callable, names: Sequence, count: int, begin: Callable[..., None] = serve, extra: tuple = ()):
    """Gives an iterator over work(name) of each of `names`, in order, worked out by `count` processes.

    With 0 or 1 of them this process does it. begin: what each does first, called with the id of this process and
    `extra`. Raises UserError where a process dies.
    """
    if count <= 1 or len(names) <= 1:
        yield map(work, names)
        return
    count = min(count, len(names))
    chunk = max(1, min(64, len(names) // (8 * count)))
    with _pool(count, begin, extra) as pool:
        yield pool.map(work, names, chunksize=chunk)


def in_chunks(work: Callable[[list], object], things: Iterable, count: int, size: int) -> Iterator[tuple[int, object]]:
    """How many `things` a chunk of them has, and work(chunk), for chunk after chunk, worked out by `count` processes.

    size: of a chunk. Only a few chunks are held at a time. With 0 or 1 processes, or no more than a chunk, this process
    does it. Raises UserError where a process dies.
    """
    things = iter(things)
    chunks = iter(lambda: list(islice(things, size)), [])
    first = list(islice(chunks, 2))
    if count <= 1 or len(first) < 2:
        yield from ((len(chunk), work(chunk)) for chunk in chain(first, chunks))
        return
    with _pool(count) as pool:
        pending: deque = deque()
        for chunk in chain(first, chunks):
            pending.append((len(chunk), pool.submit(work, chunk)))
            if len(pending) > 2 * count:
                number, result = pending.popleft()
                yield number, result.result()
        yield from ((number, result.result()) for number, result in pending)


@contextmanager
def _pool(count: int, begin: Callable[..., None] = serve, extra: tuple = ()):
    """`count` processes that end with this one. Raises UserError where one of them dies."""
    pool = ProcessPoolExecutor(count, initializer=begin, initargs=(os.getpid(), *extra))
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            "--num_workers: a worker process died, perhaps for want of memory; use fewer and run the command again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
