"""Signals that ask a process to end: Ctrl-C, and SIGTERM, SIGUSR1 and SIGHUP, which queues and terminals send.

A script exits with 128 + the number of the signal. What it does before depends on what it is at:

`leave_at_once`   while modules are imported: nothing is there yet that must be saved
`interrupting`    in most work: `Interrupted` is raised, files are closed, temporary ones removed
`Stop`            in training: the step at hand is finished, then the run is saved
`serve`           in processes that load data: their parent gets the signal too, and ends them
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # Windows has the first two
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# `timeout`, `scancel` and torchrun send a signal to a process and to its group: what follows so soon is no second one.
SAME_SIGNAL_SECONDS = 1.0
AGAIN_SECONDS = 0.1  # until a signal is repeated that was lost
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Interrupted(KeyboardInterrupt):
    """A signal came that ends the work. number: that of the signal."""

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
    """Whether a signal counts. What `nohup` has ignored stays so; not Ctrl-C, which shells ignore in jobs with &."""
    return number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN


@contextlib.contextmanager
def interrupting():
    """Within it a signal raises Interrupted, and does so again where that was lost in an object's __del__."""
    came = -SAME_SIGNAL_SECONDS
    hook = sys.unraisablehook

    def interrupt(number: int, frame) -> None:
        nonlocal came
        before, came = came, time.monotonic()
        if came - before >= SAME_SIGNAL_SECONDS:
            raise Interrupted(number)

    def repeat(lost) -> None:
        nonlocal came
        if not isinstance(lost.exc_value, Interrupted):
            hook(lost)
        else:
            came = -SAME_SIGNAL_SECONDS
            again = threading.Timer(AGAIN_SECONDS, signal.raise_signal, [lost.exc_value.number])
            again.daemon = True
            again.start()

    sys.unraisablehook = repeat
    try:
        with handling(interrupt):
            yield
    finally:
        sys.unraisablehook = hook


class Stop:
    """Within it the first signal is noted in `signal`: the run ends after the step at hand.

    Others wait for that end, but for a second Ctrl-C, which raises Interrupted.
    """

    signal: int | None = None

    def __enter__(self) -> "Stop":
        self.handling = handling(self.note)
        self.handling.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.handling.__exit__(*error)

    def note(self, number: int, frame) -> None:
        if self.signal is None:
            self.signal, self.came = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.came > SAME_SIGNAL_SECONDS:
            raise Interrupted(number)


def leave_at_once() -> None:
    """From now on a signal ends the process without a word."""
    for number in SIGNALS:
        if answered(number):
            signal.signal(number, lambda number, frame: os._exit(128 + number))


def serve(parent: int) -> None:
    """Begin a process that works for the process `parent`: signals do nothing, and it ends when the parent does.

    The parent gets the signals too and ends its processes. Only Linux tells a process that its parent is dead.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # It prints what a thread of multiprocessing's meets when the parent goes away; errors of the work go to the parent.
    sys.excepthook = lambda *error: None
    end_with_parent(getattr(signal, "SIGKILL", signal.SIGTERM), parent)  # Windows has no SIGKILL


def end_with_parent(number: int, parent: int) -> None:
    """Have this process get signal `number` when the process `parent`, or the thread of it that began this, ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was faster
            os.kill(os.getpid(), number)
