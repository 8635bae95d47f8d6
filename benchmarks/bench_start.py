#!/usr/bin/env python3
"""How long train.py takes to its first step with very many captions, and how much memory it holds while it trains.

    benchmarks/bench_start.py                                  # a million captions over 200,000 images
    benchmarks/bench_start.py --captions 100000 --images 20000 --steps 500
    benchmarks/bench_start.py --folder /data/bench --json start.json     # keeps the data for another time

Data are made up: captions in COCO's format, features of 32 numbers in an lmdb file. train.py runs twice with
`--verbose`, first without the files that it keeps beside its vocabulary, then with them. The times are those from the
start of Python to the end of the first step. The memory is the sum of the proportional memory (PSS) of train.py and of
its workers: a page that n processes share counts as 1/n in each. Each figure is the mean of twenty readings. Its parts
are told too: other programs on the machine that use the same libraries change the part that lies in files.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from captioning.command_line import Parser
from captioning.errors import run
from captioning.files import atomic_write

FROM_STEP = 100  # the first step after which memory is read: by then the workers are at work
READ_EVERY = 100  # steps
READINGS = 20  # the mean of so many: what a step holds at one moment is up to a tenth more than at another
SECTION, MODEL = "start", "start"
KINDS = {"Pss": "memory", "Pss_Anon": "of it in no file", "Pss_File": "of it in files", "Pss_Shmem": "of it shared"}
START = re.compile(r"start: +([\d.]+) s (.+)")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--captions", type=int, default=1_000_000, metavar="N", help="captions (default: %(default)s)")
    parser.add_argument("--images", type=int, default=200_000, metavar="N", help="images (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=2_000, metavar="N", help="steps of training (default: %(default)s)"
    )
    parser.add_argument("--num_workers", type=int, default=2, metavar="N", help="as train.py's (default: %(default)s)")
    parser.add_argument("--folder", metavar="DIR", help="where the data are made and stay (default: they are removed)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()

import bench_data
from bench_memory import MB, proportional, tree

WORDS, DIMENSION = 10_000, 32  # features are small: pages of a file that is read count as memory too


def make_data(folder: Path, captions: int, images: int) -> Path:
    """The caption file, the feature file and datasets.conf in `folder`, unless they are there. Returns the latter."""
    config = folder / "datasets.conf"
    path = folder / "captions" / f"{SECTION}.json"
    if not config.exists():
        names = bench_data.write_captions(path, bench_data.captions(captions, bench_data.words(WORDS)), images)
        bench_data.write_features(folder / "features" / SECTION / "pooled.lmdb", names, (DIMENSION,))
        bench_data.write_config(folder, [SECTION])
    return config


def command(config: Path, steps: int, workers: int) -> list[str]:
    """train.py on the data, with a small model: its own time does not matter here."""
    flags = {"--dataset": f"bench:{SECTION}", "--dataset_config_file": config, "--features": "pooled.lmdb"}
    flags |= {"--hidden_size": 64, "--embed_size": 64, "--num_batches": steps, "--num_epochs": 1}
    flags |= {"--num_workers": workers, "--model_name": MODEL, "--logger": "csv", "--log_step": READ_EVERY}
    words = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-u", str(ROOT / "train.py"), *words, "--verbose", "--replace", "--cpu"]


class Watched:
    """A run of train.py in `folder`, from its start on."""

    def __init__(self, words: list[str], folder: Path):
        self.folder, self.began = folder, time.monotonic()
        with contextlib.suppress(OSError):
            self._log().unlink()
        self.process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def first_step(self) -> tuple[float, dict[str, float]]:
        """Seconds to the end of the first step, and those of each part of the start. Raises RuntimeError."""
        parts = {}
        for line in self.process.stdout:
            if found := START.match(line):
                parts[found[2]] = float(found[1])
                if found[2] == "the first step":
                    return time.monotonic() - self.began, parts
        raise RuntimeError(f"train.py ended with {self.process.wait()} before its first step")

    def memory(self, workers: int) -> dict[int, dict[str, int]]:
        """Bytes of each kind of memory after each hundred steps, means of some readings, while so many workers live."""
        read: dict[int, list[dict[str, int]]] = {}
        while self.process.poll() is None:
            if (step := self._step()) >= FROM_STEP and len(read.get(step, ())) < READINGS:
                processes = tree(self.process.pid)
                if len(processes) > workers:  # at the end of the run they are gone
                    now = {kind: sum(proportional(pid, kind) for pid in processes) for kind in KINDS}
                    read.setdefault(step, []).append(now)
            time.sleep(0.03)
        return {step: {kind: round(mean(one[kind] for one in all_)) for kind in KINDS} for step, all_ in read.items()}

    def _step(self) -> int:
        """The last step that is in the log of the run."""
        with contextlib.suppress(OSError):
            last = self._log().read_text().splitlines()[-1:]
            return int(last[0].split(",")[0]) if last and last[0][0].isdecimal() else 0
        return 0

    def _log(self) -> Path:
        return self.folder / "models" / MODEL / "log_step.csv"

    def end(self) -> None:
        """Stop train.py with its workers, and wait for it."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure(folder: Path, args) -> dict:
    config = make_data(folder, args.captions, args.images)
    words = command(config, args.steps, args.num_workers)
    shutil.rmtree(folder / "vocab_cache", ignore_errors=True)
    figures = {}
    for which in ("first", "second"):
        watched = Watched(words, folder)
        try:
            seconds, parts = watched.first_step()
            figures[f"{which}_start_seconds"], figures[f"{which}_start_parts"] = seconds, parts
            if which == "second":
                figures["bytes_after_steps"] = watched.memory(args.num_workers)
        finally:
            watched.end()
    return figures


def report(figures: dict) -> None:
    for which in ("first", "second"):
        print(f"{which} start: {figures[f'{which}_start_seconds']:.1f} s to the first step")
        for what, seconds in figures[f"{which}_start_parts"].items():
            print(f"    {seconds:5.1f} s {what}")
    read = figures["bytes_after_steps"]
    for kind, what in KINDS.items():
        sizes = [one[kind] for one in read.values()]
        if sizes and max(sizes):
            grown = (
                f"{min(sizes) / MB:.0f} to {max(sizes) / MB:.0f} MB, {max(sizes) / max(1, min(sizes)) - 1:.1%} apart"
            )
            print(f"{what}, after steps {min(read)} to {max(read)}: {grown}")


def main(args) -> int:
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_start_"))
        figures = measure(Path(folder).resolve(), args)
    report(figures)
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
