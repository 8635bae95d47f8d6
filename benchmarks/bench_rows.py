"""A row of the benchmark: what is measured, how it is repeated, and how it is set against its limit."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench_machine import Probe, forget_peak, run_script, synchronize
from bench_memory import resident

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Scale:
    """How much work a run of each row is; `runs` of work in this process, `script_runs` of whole scripts."""

    runs: int
    script_runs: int
    lstm_captions: int
    attention_captions: int
    pixel_images: int
    decode_images: int
    folder_images: int
    feature_images: int
    cached_images: int
    small_photos: int
    large_photos: int
    captions: int
    many_captions: int
    records: int
    scored: int


FULL = Scale(5, 3, 30_000, 4_000, 32, 1_000, 512, 1_000, 200, 8_000, 96, 30_000, 414_000, 20_000, 5_000)
QUICK = Scale(3, 1, 400, 125, 7, 32, 64, 200, 12, 64, 3, 5_000, 20_000, 2_000, 300)


@dataclass
class Bench:
    """What every row is given. folder: for its data; probe: measures the machine; amp: "off" or "bf16"; profile:
    whether rows also tell which operators take their time.
    """

    folder: Path
    device: torch.device
    probe: Probe
    scale: Scale
    amp: str = "off"
    python: str = "python3"
    profile: bool = False
    made: dict = field(default_factory=dict)  # what several rows share

    def script(self, *command, watch: bool = False):
        """A script of the toolkit, run as a person would."""
        return run_script([self.python, *command], ROOT, watch)

    @property
    def hurried(self) -> bool:
        """Whether a whole script is run once only, memory watched, instead of once for that and then for the time."""
        return self.scale.script_runs == 1

    def device_flags(self) -> list[str]:
        return ["--device", self.device.type]

    def repeated(self, run: Callable, runs: int) -> Iterable[tuple]:
        """(result of run(), the machine's mean Speed right before and after) for each of `runs`."""
        before = self.probe()
        for _ in range(runs):
            result = run()
            synchronize(self.device)
            after = self.probe()
            yield result, before.mean(after)
            before = after


@dataclass
class Row:
    """Results of one row; rates in `unit`, the k-th limit belongs to the k-th run.

    less_is_better: the figures are seconds. explain: the arithmetic of the limit. parts: more figures, by name.
    """

    title: str
    unit: str
    limit_name: str
    runs: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    explain: list[str] = field(default_factory=list)
    parts: dict = field(default_factory=dict)
    peak_bytes: int = 0
    less_is_better: bool = False

    def add(self, figure: float, limit: float) -> None:
        self.runs.append(figure)
        self.limits.append(limit)

    @property
    def fractions(self) -> list[float]:
        pairs = zip(self.runs, self.limits)
        return [limit / run if self.less_is_better else run / limit for run, limit in pairs]

    def to_dict(self) -> dict:
        figures = {"rate": self.runs, "limit": self.limits, "fraction": self.fractions}
        return {
            "title": self.title,
            "unit": self.unit,
            "limit_name": self.limit_name,
            "less_is_better": self.less_is_better,
            **{name: spread(values) for name, values in figures.items()},
            "peak_bytes": self.peak_bytes,
            "explain": self.explain,
            "parts": self.parts,
        }


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": values}


def profiled(run: Callable, device: torch.device, most: int = 8) -> dict[str, float]:
    """The `most` operators of torch that take the most time of run(), each with its share of all operators' time."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        run()
        synchronize(device)
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in found.key_averages()
    }
    total = max(1e-9, sum(times.values()))
    return {name: times[name] / total for name in sorted(times, key=times.get, reverse=True)[:most]}


def peak_of_this_process(device: torch.device) -> int:
    """Bytes since `forget_peak`: of a GPU's memory where there is one, else of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()


def of_products(
    row: Row, bench: Bench, run: Callable[[], tuple[float, float, float]], runs: int, shorter: Callable | None = None
) -> Row:
    """Fill `row` from run() -> (units, seconds, operations of the products), each compared with the rate around it.

    shorter: what is profiled instead of run(), whose every operator would be kept in memory.
    """
    forget_peak(bench.device)
    for (units, seconds, operations), speed in bench.repeated(run, runs):
        row.add(units / seconds, units / (operations / (speed.gflops * 1e9)))
        row.parts.setdefault("gflops_of_the_machine", []).append(speed.gflops)
        row.parts["operations_per_unit"] = operations / units
    row.peak_bytes = max(row.peak_bytes, peak_of_this_process(bench.device))
    if bench.profile:
        row.parts["operators"] = profiled(shorter or run, bench.device)
    return row


def import_seconds(bench: Bench, *packages: str) -> float:
    """Time of a Python process that imports `packages` and ends."""
    key = ("import", packages)
    if bench.hurried and key in bench.made:
        return bench.made[key]
    bench.made[key] = run_script([bench.python, "-c", f"import {', '.join(packages)}"], ROOT).seconds
    return bench.made[key]
