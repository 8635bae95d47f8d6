"""How many processor cores there are, and which processes torchrun started, as the environment tells it."""

import contextlib
import io
import os


def core_count() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """This process' part of the cores: the others that torchrun started on the machine have theirs."""
    return max(1, core_count() // _number("LOCAL_WORLD_SIZE", 1))


def process_count() -> int:
    """How many processes torchrun started; 1 without it."""
    return _number("WORLD_SIZE", 1)


def process_number() -> int:
    """The number of this process among those that torchrun started, from 0 on; 0 without torchrun."""
    return _number("RANK", 0)


@contextlib.contextmanager
def first_speaks():
    """Within it only the first process prints: what all of them would say is said once."""
    if process_number() == 0:
        yield
        return
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        yield


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return max(default, int(text)) if text.isdecimal() else default
