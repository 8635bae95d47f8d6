"""What a log is told of long work, by a clock of the test's own."""

import io

import pytest

from captioning import progress
from captioning.progress import Bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the bar believes to have passed: clock[0]."""
    seconds = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_every_half_minute(clock, capsys):
    bar = Bar(1000, "epoch 3", "batch", done=100)
    for _ in range(7):
        clock[0] += 10
        bar.update(20)
    lines = capsys.readouterr().out.splitlines()
    # 20 in 10 seconds: 2 a second; 840 and 780 batches are left
    assert lines == [
        "epoch 3: batch 160/1000, 2 a second, 07:00 left",
        "epoch 3: batch 220/1000, 2 a second, 06:30 left",
    ]
    bar.say("loss 2.5")
    clock[0] += 30
    bar.move_to(1000)
    assert capsys.readouterr().out.endswith("batch 1000/1000, 9 a second, 00:00 left, loss 2.5\n")
    bar.close()


def test_lines_go_where_they_are_sent_and_past_the_end_is_the_end(clock, capsys):
    stream = io.StringIO()
    with Bar(4, "images", "image", stream=stream) as bar:
        clock[0] += 31
        bar.update(0)
        clock[0] += 3600 * 2
        bar.update(3)
        clock[0] += 31
        bar.update(3)
    assert stream.getvalue().splitlines() == [
        "images: image 0/4",
        "images: image 3/4, 0.00041 a second, 40:10 left",
        "images: image 4/4, 0.00055 a second, 00:00 left",
    ]
    assert capsys.readouterr() == ("", "")


def test_items_pass_through(clock, capsys):
    with Bar(3, "words", "caption") as bar:
        seen = []
        for item in bar.over("abc"):
            seen.append(item)
            clock[0] += 20
        assert (seen, bar.done) == (list("abc"), 3)
    assert capsys.readouterr().out == "words: caption 2/3, 0.05 a second, 00:20 left\n"


def test_of_several_processes_one_speaks(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Bar(3, "words", "caption") as bar:
        clock[0] += 100
        bar.update(1)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_moves_and_no_line_is_printed(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for drawn in (True, False):
        with Bar(3, "words", "caption", drawn=drawn) as bar:
            clock[0] += 100
            bar.update(1)
            bar.tell("a line")
        told = capsys.readouterr()
        assert told.out == "" and "a line\n" in told.err and ("words: " in told.err) == drawn
