"""The machine's own limits, and what a piece of work took: matrix-product and copy rates, time, memory.

The matrix-product rate of one machine drifts by a factor of two within minutes where others use it too. Hence a `Probe`
measures it right before and right after every run of every row, and a run is compared with the mean of the two.
"""

import contextlib
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench_memory import MB, proportional, tree

from captioning.cores import core_count
from captioning.fast.linear import product


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Speed:
    """gflops: 10^9 multiplications and additions a second, by torch.mm; own_gflops: by fast/linear.py; gbytes: 10^9
    bytes read and written a second.
    """

    gflops: float
    own_gflops: float
    gbytes: float

    def mean(self, other: "Speed") -> "Speed":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Speed(*((a + b) / 2 for a, b in pairs))


@dataclass
class Probe:
    """Measures the device's square matrix products and copies, with the threads that torch uses in this process.

    size: rows and columns of the matrices; seconds: time given to each of the two measurements.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    size: int = 2048
    seconds: float = 0.25
    samples: list[Speed] = field(default_factory=list)

    def __post_init__(self):
        options = {"device": self.device, "dtype": self.dtype}
        self.a, self.b = (torch.randn(self.size, self.size, **options) for _ in range(2))
        self.out = torch.empty_like(self.a)
        size = 64 * MB if self.device.type == "cpu" else 512 * MB  # far more than caches hold
        self.source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        self.target = torch.zeros_like(self.source)
        for work in (self._product, self._own_product, self._copy):
            self._time(work, 0)  # the first ones set things up

    def __call__(self) -> Speed:
        speed = Speed(
            2 * self.size**3 / self._time(self._product, self.seconds) / 1e9,
            2 * self.size**3 / self._time(self._own_product, self.seconds / 2) / 1e9,
            2 * self.source.numel() / self._time(self._copy, self.seconds / 2) / 1e9,
        )
        self.samples.append(speed)
        return speed

    def _product(self) -> None:
        torch.mm(self.a, self.b, out=self.out)

    def _own_product(self) -> None:
        product(self.a, self.b)

    def _copy(self) -> None:
        self.target.copy_(self.source)

    def _time(self, work, seconds: float) -> float:
        """Median time of one `work()`, over as many as `seconds` allow; at least three, on a GPU ten at a time."""
        times: list[float] = []
        several = 10 if self.device.type == "cuda" else 1
        while sum(times) * several < seconds or len(times) < 3:
            synchronize(self.device)
            began = time.perf_counter()
            for _ in range(several):
                work()
            synchronize(self.device)
            times.append((time.perf_counter() - began) / several)
        return statistics.median(times)


# ---- memory ----


def forget_peak(device: torch.device) -> None:
    """From now on the peak of this process counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")


# ---- scripts ----


@dataclass
class Ran:
    """A script that ran: wall time in seconds, peak memory of all its processes in bytes (0: not watched)."""

    seconds: float
    out: str
    err: str
    peak: int = 0


def run_script(command: list, folder: Path, watch: bool = False) -> Ran:
    """Run `command` in `folder` to its end; `watch` looks at its memory ten times a second, which takes some time.

    Raises RuntimeError with its last words where it fails.
    """
    command = [str(part) for part in command]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    peak = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            peak[0] = max(peak[0], sum(proportional(pid) for pid in tree(process.pid)))

    watcher = threading.Thread(target=look, daemon=True)
    if watch:
        watcher.start()
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        ended.set()
    seconds = time.perf_counter() - began
    if watch:
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with {process.returncode}: {err.strip()[-300:]}")
    return Ran(seconds, out, err, peak[0])


def describe(device: torch.device) -> dict:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = {
        "processor": name,
        "cores": core_count(),
        "threads_of_torch": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "executable": sys.executable,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
