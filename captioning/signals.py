"""Signals that ask a process to end: Ctrl-C, and SIGTERM, SIGUSR1 and SIGHUP, which queues and terminals send.

A script exits with 128 + the number of the signal. What it does before depends on what it is at:

`leave_at_once`   while modules are imported: nothing is there yet that must be saved
`interrupting`    in most work: `Interrupted` is raised, files are closed, temporary ones removed
`Stop`            in training: the step at hand is finished, then the run is saved
`ignore`          in processes that load data: their parent gets the signal too, and ends them
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # Windows has the first two
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# `timeout`, `scancel` and torchrun send a signal to a process and to its group: what follows so soon is no second one.
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal came. number: which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def handling(handler: Callable[[int, object], None]):
    """Within it `handler` is called with (number, frame) when a signal comes. Only the main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS if answered(number)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)


def answered(number: int) -> bool:
    """Whether the signal counts: what `nohup` had ignored stays ignored. Shells do that to Ctrl-C of each job in `&`."""
    return number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN


class FirstSignal:
    """A handler that tells the first signal, and a second Ctrl-C of a person who will not wait, from all others."""

    signal: int | None = None  # the first that came
    came = 0.0

    def __call__(self, number: int, frame) -> None:
        if self.signal is None:
            self.signal, self.came = number, time.monotonic()
            self.first(number)
        elif number == signal.SIGINT and time.monotonic() - self.came > SAME_SIGNAL_SECONDS:
            raise Interrupted(number)

    def first(self, number: int) -> None:
        raise Interrupted(number)


def interrupting():
    """Within it the first signal raises Interrupted; a second Ctrl-C does so again, other signals wait for the end."""
    return handling(FirstSignal())


class Stop(FirstSignal):
    """Within it the first signal is noted in `signal`: the run ends after the step at hand. A second Ctrl-C raises."""

    def first(self, number: int) -> None:
        pass

    def __enter__(self) -> "Stop":
        self.inner = handling(self)
        self.inner.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.inner.__exit__(*error)


def leave_at_once() -> None:
    """From now on a signal ends the process without a word."""
    for number in SIGNALS:
        if answered(number):
            signal.signal(number, lambda number, frame: os._exit(128 + number))


def ignore() -> None:
    """From now on signals do nothing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
