"""The progress bar: a line that moves on a terminal, a line a minute in a log file."""

import sys
import time

from tqdm import tqdm


class Bar:
    """A progress bar on a terminal; in a log file a line a minute."""

    def __init__(self, total: int, name: str, unit: str, done: int = 0):
        self.total, self.name, self.unit, self.done, self.note = total, name, unit, done, ""
        self.tqdm = tqdm(total=total, initial=done, desc=name, unit=unit, leave=False) if sys.stderr.isatty() else None
        self.spoke = time.monotonic()

    def move_to(self, done: int) -> None:
        if self.tqdm is not None:
            self.tqdm.update(done - self.done)
        elif time.monotonic() - self.spoke > 60:
            print(f"{self.name}: {self.unit} {done}/{self.total}{self.note}", flush=True)
            self.spoke = time.monotonic()
        self.done = done

    def update(self, n: int) -> None:
        self.move_to(self.done + n)

    def say(self, note: str) -> None:
        """What stands beside the bar."""
        self.note = f", {note}"
        if self.tqdm is not None:
            self.tqdm.set_postfix_str(note)

    def close(self) -> None:
        if self.tqdm is not None:
            self.tqdm.close()
