"""Sharing work among processes of this machine."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

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
    pool = ProcessPoolExecutor(count, initializer=begin, initargs=(os.getpid(), *extra))
    try:
        yield pool.map(work, names, chunksize=chunk)
    except BrokenProcessPool:
        raise UserError(
            "--num_workers: a worker process died, perhaps for want of memory; use fewer and run the command again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
