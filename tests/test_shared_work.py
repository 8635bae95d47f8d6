"""Work shared among processes, chunk by chunk: in order, a few chunks at a time, and a word where a process dies."""

import os
import signal
from itertools import count, islice

import pytest

from captioning.errors import UserError
from captioning.processes import in_chunks


def total(chunk: list[int]) -> int:
    return sum(chunk)


def die(chunk: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [0, 1, 2])
@pytest.mark.parametrize("things", [0, 1, 3, 4, 25])
def test_chunks_come_in_order(processes, things):
    expected = [
        (len(chunk), sum(chunk)) for first in range(0, things, 3) if (chunk := range(things)[first : first + 3])
    ]
    assert list(in_chunks(total, iter(range(things)), processes, 3)) == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_only_a_few_chunks_are_taken_ahead(processes):
    taken = count()
    assert list(islice(in_chunks(total, taken, processes, 10), 2)) == [(10, 45), (10, 145)]
    assert next(taken) <= 100


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_process_that_dies():
    with pytest.raises(UserError, match="a worker process died"):
        list(in_chunks(die, range(50), 2, 10))
