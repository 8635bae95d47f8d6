"""Work on several cores: order, errors, threads; captions of a folder are those of one batch after the other."""

import threading
import time

import pytest
import torch

from captioning.fast.threads import MOST, map_on_cores


@pytest.fixture
def threads():
    """Sets how many cores torch shall use; undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_results_come_in_order(cores, count, threads):
    threads(cores)

    def work(number):
        time.sleep(0.001 * (number * 7 % 3))
        return number, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    results = list(map_on_cores(work, iter(range(count))))
    assert [number for number, _, _ in results] == list(range(count))
    alone = cores == 1 or count < 2
    assert {share for _, share, _ in results} <= {cores if alone else cores // min(cores, MOST)}
    assert all(main == alone for _, _, main in results)
    assert torch.get_num_threads() == cores
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [cores]  # threads of later times too have all cores


def test_no_more_is_taken_than_can_be_worked_on(threads):
    threads(2)
    taken = []
    results = map_on_cores(lambda number: number, (taken.append(n) or n for n in range(10)))
    assert taken == []
    assert next(results) == 0 and len(taken) <= 4
    assert next(results) == 1 and len(taken) <= 5
    results.close()
    assert len(taken) <= 5 and threading.active_count() < 10


def test_errors_come_in_the_place_of_results(threads):
    threads(2)

    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    results = map_on_cores(work, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)

    def broken():
        yield from range(3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(map_on_cores(lambda number: number, broken()))


def test_with_the_switch_off_all_is_done_here(threads, plainly):
    threads(2)
    found = plainly(lambda: list(map_on_cores(lambda _: threading.current_thread(), range(5))))
    assert set(found) == {threading.current_thread()}
