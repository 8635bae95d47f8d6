"""Kills a short training again and again, at a call that changes a file or after a time, and resumes it.

    python tests/killed_runs.py FOLDER DATA '{"writes": 40, "others": 1, "seconds": [0.2]}'

Prints a JSON list with an entry for each kill: what the run was at, and what was wrong after it had been resumed, or ""
for nothing. writes: N for a kill at each N-th write; others: at each N-th of the other calls. seconds: after its start.
Each run is a fork of this process, which has imported torch but computed nothing: a process of its own would take ten
times as long.
"""

import builtins
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork loses the threads that torch has begun
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from toy import SMALL, differences

import train
from captioning import files
from captioning.errors import run

importlib.import_module("torch._dynamo")  # an optimizer does, in each fork, which takes longer than all the rest
FLAGS = ["--dataset", "toy:train", "--validate", "toy:val", "--validation_scoring", "bleu", "--features", "pooled.npy"]
FLAGS += [*map(str, SMALL), "--vocab_threshold", "1", "--batch_size", "40", "--optimizer", "adam"]
FLAGS += [
    "--learning_rate",
    "0.02",
    "--ema",
    "0.9",
    "--lr_scheduler",
    "--num_epochs",
    "3",
    "--keep",
    "1",
    "--save_every",
    "2",
    "--cpu",
    "--dropout",
    "0.2",
]


class Counter:
    """Counts calls that change files; the `fatal`-th (from 0) kills the process before it has done its work."""

    def __init__(self, fatal: int | None):
        self.fatal, self.calls = fatal, []

    def around(self, name: str, real):
        def call(*arguments, **options):
            self.count(name, lambda: None)
            return real(*arguments, **options)

        return call

    def count(self, name: str, last_words) -> None:
        if len(self.calls) == self.fatal:
            last_words()
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.append(name)

    def install(self) -> None:
        for name in ("fsync", "replace", "unlink", "chmod"):
            setattr(os, name, self.around(name, getattr(os, name)))
        tempfile.mkstemp = self.around("mkstemp", tempfile.mkstemp)
        files.open = self.open

    def open(self, *arguments, **options) -> "CountedFile":
        return CountedFile(builtins.open(*arguments, **options), self)


class CountedFile:
    """A file whose writes are counted; the fatal one writes the half of what it should."""

    def __init__(self, file, counter: Counter):
        self.file, self.counter = file, counter

    def write(self, data) -> int:
        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.counter.count("write", half)
        return self.file.write(data)

    def __enter__(self) -> "CountedFile":
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def forked(work, log: Path) -> tuple[int, int]:
    """The process that does `work()`, and the end of a pipe on which it may write; its prints go into `log`."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 99
    try:
        with open(log, "a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = work(writing)
    finally:
        os._exit(status)


def training(folder: Path, data: Path, *more: str) -> int:
    flags = [*FLAGS, "--dataset_config_file", str(data / "datasets.conf"), "--model_path", str(folder / "models")]
    return run(train.main, train.parse_args([*flags, "--vocab_root", str(folder / "v"), "--model_name", "m", *more]))


def whole(folder: Path, data: Path) -> list[str]:
    """Train without a kill. Returns the names of the calls that were counted."""

    def work(pipe: int) -> int:
        counter = Counter(None)
        counter.install()
        status = training(folder, data)
        os.write(pipe, json.dumps(counter.calls).encode())
        return status

    process, pipe = forked(work, folder / "log")
    with open(pipe) as answer:
        calls = json.loads(answer.read())
    assert os.waitpid(process, 0)[1] == 0, (folder / "log").read_text()
    return calls


def killed(folder: Path, data: Path, fatal: int | None, seconds: float | None) -> bool:
    """Train until the kill. Whether it came before the end."""

    def work(pipe: int) -> int:
        Counter(fatal).install()
        return training(folder, data)

    process, pipe = forked(work, folder / "log")
    os.close(pipe)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1] == signal.SIGKILL


def resumed(folder: Path, data: Path, other: Path) -> str:
    """Go on to the end; what differs then from the run in the folder `other`."""

    def work(pipe: int) -> int:
        status = training(folder, data, "--resume")
        found = differences(folder / "models/m", other / "models/m") if status == 0 else f"status {status}"
        debris = [str(path.relative_to(folder)) for path in folder.rglob(".*")]
        found = found or (f"debris {debris}" if debris else "")
        os.write(pipe, found.encode())
        return 0

    process, pipe = forked(work, folder / "log")
    with open(pipe) as answer:
        found = answer.read()
    return found if os.waitpid(process, 0)[1] == 0 else (folder / "log").read_text()


def main(folder: Path, data: Path, wanted: dict) -> None:
    (folder / "whole").mkdir()
    calls = whole(folder / "whole", data)
    writes = [number for number, name in enumerate(calls) if name == "write"]
    others = [number for number, name in enumerate(calls) if name != "write"]
    numbers = [*writes[:: wanted.get("writes", len(calls))], *others[:: wanted.get("others", len(calls))]]
    numbers = numbers if wanted.keys() & {"writes", "others"} else []
    kills = [(number, None) for number in numbers] + [(None, seconds) for seconds in wanted.get("seconds", [])]
    found = []
    for place, (number, seconds) in enumerate(kills):
        own = folder / str(place)
        own.mkdir()
        came = killed(own, data, number, seconds)
        name = f"call {number}, {calls[number]}" if number is not None else f"after {seconds} s"
        name += "" if came else ", which was after its end"
        wrong = "" if came or number is None else "the run was not killed"
        found.append([name, wrong or resumed(own, data, folder / "whole")])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
