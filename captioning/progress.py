"""How far a long work is: a bar that moves on a terminal, a line every half minute in a log."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from captioning.cores import process_number

INTERVAL = 30  # seconds between two lines of a log


class Bar:
    """A progress bar on a terminal; where stderr is none, a line every half minute with the rate and the time left.

    Of several processes that torchrun started the first one alone shows it. total: how many `unit`s there are; done:
    how many of them before the work begins; stream: where the lines go (default: stdout); drawn: whether there is a
    bar on a terminal, which would be in the way of what is printed there.
    """

    def __init__(self, total: int, name: str, unit: str, done: int = 0, stream=None, drawn: bool = True):
        self.total, self.name, self.unit, self.stream = total, name, unit, stream
        self.first = self.done = done
        self.note, self.tqdm = "", None
        first_process, terminal = process_number() == 0, sys.stderr.isatty()
        self.speaks = first_process and not terminal
        if first_process and terminal and drawn:
            self.tqdm = tqdm(total=total, initial=done, desc=name, unit=unit, leave=False)
        self.began = self.spoke = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def move_to(self, done: int) -> None:
        done = min(done, self.total)
        if self.tqdm is not None:
            self.tqdm.update(done - self.done)
        self.done = done
        if self.speaks and (now := time.monotonic()) - self.spoke >= INTERVAL:
            self.spoke = now
            print(self.line(now - self.began), file=self.stream or sys.stdout, flush=True)

    def update(self, n: int) -> None:
        self.move_to(self.done + n)

    def over(self, items: Iterable) -> Iterator:
        """The items, each of which moves the bar by one when the next is asked for."""
        for item in items:
            yield item
            self.update(1)

    def line(self, seconds: float) -> str:
        """What a log is told after so many seconds of work."""
        line = f"{self.name}: {self.unit} {self.done}/{self.total}"
        if self.done > self.first:
            rate = (self.done - self.first) / seconds
            left = tqdm.format_interval((self.total - self.done) / rate)
            line += f", {f'{rate:.0f}' if rate >= 100 else f'{rate:.2g}'} a second, {left} left"
        return line + self.note

    def say(self, note: str) -> None:
        """What stands beside the bar, or behind the line."""
        self.note = f", {note}"
        if self.tqdm is not None:
            self.tqdm.set_postfix_str(note)

    def tell(self, line: str) -> None:
        """Print a line on stderr, above the bar."""
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        if self.tqdm is not None:
            self.tqdm.close()
