#!/usr/bin/env python3
"""How fast the toolkit is, row by row, and what part of the machine's own limit that is.

    benchmarks/bench.py                            # every row: about a quarter of an hour on two cores
    benchmarks/bench.py --quick                    # every row with little work each: under a minute, rough figures
    benchmarks/bench.py --only train_lstm,greedy_attention --explain
    benchmarks/bench.py --device cuda --amp bf16 --json gpu.json

Data are made up in a temporary folder; nothing is downloaded. The matrix-product and the copy rate of the machine are
measured between all runs, since they drift, and each run is compared with the rate around it. A figure is the median of
several runs, with the least and the largest. benchmarks/README.md says what the rows are.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.command_line import Parser
from captioning.errors import UserError, run
from captioning.files import atomic_write

# Name of the row (a function of that name in the module): module, what to reach, DeepCaption on two such cores.
ROWS = {
    "train_lstm": ("bench_training", "0.70", "461/s, 0.46"),
    "train_attention": ("bench_training", "0.55", "69/s"),
    "train_updown": ("bench_training", "", ""),
    "train_transformer": ("bench_training", "0.60", ""),
    "train_pixels": ("bench_training", "42/s at 250", "5.0/s"),
    "train_cached": ("bench_training", "0.90", ""),
    "train_regions": ("bench_training", "0.80", ""),
    "greedy_attention": ("bench_inference", "0.55", "142/s"),
    "beam5_attention": ("bench_inference", "0.60", ""),
    "greedy_updown": ("bench_inference", "", ""),
    "greedy_transformer": ("bench_inference", "0.40", ""),
    "beam5_transformer": ("bench_inference", "0.45", ""),
    "infer_folder_greedy": ("bench_inference", "75/s", ""),
    "infer_folder_beam5": ("bench_inference", "60/s", ""),
    "infer_features": ("bench_inference", "", "9.6 s"),
    "first_caption": ("bench_inference", "+2 s", ""),
    "resize_small": ("bench_preparation", "650/s", "360/s"),
    "resize_large": ("bench_preparation", "4 x plain", ""),
    "vocab_30k": ("bench_preparation", "", "4.2 s"),
    "vocab_414k": ("bench_preparation", "30 s, 600 MB", ""),
    "read_lmdb": ("bench_preparation", "0.80", ""),
    "read_npy": ("bench_preparation", "", ""),
    "read_bin": ("bench_preparation", "0.80", ""),
    "read_h5": ("bench_preparation", "", ""),
    "read_bin_struct": ("bench_preparation", "20", ""),
    "scoring": ("bench_preparation", "", ""),
    "startup": ("bench_preparation", "0.3 s", ""),
}


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="little work in each row: under a minute, rough figures")
    add("--only", metavar="ROW", help=f"only these rows, comma separated: {', '.join(ROWS)}")
    add("--json", metavar="FILE", help="write all figures to this file (default: print the table only)")
    add("--device", default="cpu", help="cpu, cuda or cuda:1: for the rows that compute (default cpu)")
    add("--amp", choices=("off", "bf16"), default="off", help="mixed precision, products measured in it (default off)")
    add("--runs", type=int, metavar="N", help="runs of each row (default 5, of whole scripts 3; --quick 3 and 1)")
    add("--profile", action="store_true", help="run the rows that compute once more, and print what takes their time")
    add("--explain", action="store_true", help="print the arithmetic of each limit below the table")
    add(
        "--folder",
        metavar="DIR",
        help="where the data go, two gigabytes, until the end (default: a temporary folder)",
    )
    args = parser.parse_args(argv)
    args.only = [name.strip() for name in args.only.split(",")] if args.only else list(ROWS)
    for name in args.only:
        if name not in ROWS:
            parser.error(f"--only {name}: no such row; the rows are {', '.join(ROWS)}")
    if args.runs is not None and args.runs < 1:
        parser.error(f"--runs {args.runs}: at least 1")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import dataclasses
import importlib
import json
import tempfile
import time

import torch
from bench_machine import MB, Probe, describe
from bench_rows import FULL, QUICK, Bench, Row, spread

from captioning.devices import choose_device


def make_bench(args, folder: Path) -> Bench:
    device = choose_device(args.device)
    scale = QUICK if args.quick else FULL
    if args.runs:
        scale = dataclasses.replace(scale, runs=args.runs, script_runs=args.runs)
    dtype = torch.bfloat16 if args.amp == "bf16" else torch.float32
    size = 8192 if device.type == "cuda" else 1024 if args.quick else 2048
    probe = Probe(device, dtype, size, 0.06 if args.quick else 0.25)
    return Bench(folder, device, probe, scale, args.amp, sys.executable, args.profile)


def measure(bench: Bench, names: list[str]) -> tuple[dict[str, Row], dict[str, str]]:
    """The rows by name, and for those that could not run here the reason."""
    rows, skipped = {}, {}
    for name in names:
        began = time.monotonic()
        module = importlib.import_module(ROWS[name][0])
        try:
            rows[name] = getattr(module, name)(bench)
        except (UserError, RuntimeError) as error:  # a package or a library that is not here: the others still run
            skipped[name] = " ".join(str(error).split())
            print(f"{name}: left out: {skipped[name]}", file=sys.stderr)
            continue
        print(line(name, rows[name]), flush=True)
        rows[name].parts["seconds_of_the_whole_row"] = time.monotonic() - began
    return rows, skipped


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figures(values: list[float], unit: str = "") -> str:
    """The median, and the least and the largest in brackets where there are several."""
    found = spread(values)
    text = number(found["median"]) + (f" {unit}" if unit else "")
    return text if len(values) == 1 else f"{text} ({number(found['min'])}-{number(found['max'])})"


def line(name: str, row: Row) -> str:
    """A line of the table."""
    _, target, deepcaption = ROWS[name]
    memory = f"{row.peak_bytes / MB:,.0f} MB" if row.peak_bytes else "-"
    cells = (name, figures(row.runs, row.unit), f"{figures(row.fractions)} of {row.limit_name}", target, deepcaption)
    return "{:<20} {:<32} {:<40} {:<13} {:<12}".format(*cells) + f"{memory:>9}"


def header(machine: dict) -> str:
    titles = ("row", "median (least-largest)", "part of the limit", "to reach", "DeepCaption")
    text = "{:<20} {:<32} {:<40} {:<13} {:<12}".format(*titles) + f"{'memory':>9}"
    threads = f"{machine['cores']} cores, {machine['threads_of_torch']} threads of torch {machine['torch']}"
    return f"{machine.get('gpu', machine['processor'])}: {threads}\n\n{text}\n{'-' * len(text)}"


def machine_line(bench: Bench) -> str:
    names = ("gflops", "own_gflops", "gbytes")
    products, own, copies = ([getattr(s, name) for s in bench.probe.samples] for name in names)
    kind = "bfloat16" if bench.amp == "bf16" else "float32"
    return (
        f"the machine, measured between the runs: {kind} products of {bench.probe.size}x{bench.probe.size} "
        f"{figures(products, 'GFLOP/s')} by torch.mm (the limits above), {figures(own, 'GFLOP/s')} by fast/linear.py; "
        f"copies {figures(copies, 'GB/s')}"
    )


def explanation(rows: dict[str, Row], bench: Bench) -> list[str]:
    """How each limit comes about."""
    from bench_limits import __doc__ as text

    lines = ["", "How the limits come about", "", *text.strip().split("\n")]
    for name, row in rows.items():
        lines += ["", f"{name}: {row.title}", *(f"    {one}" for one in row.explain)]
        if "operations_per_unit" in row.parts:
            per = row.parts["operations_per_unit"] / 1e6
            speed = spread(row.parts["gflops_of_the_machine"])["median"]
            limit = f"{spread(row.limits)['median']:,.1f} {row.unit}"
            lines.append(f"    in all {per:,.1f} M operations each; at {speed:,.1f} GFLOP/s the limit is {limit}")
    return lines


def profiles(rows: dict[str, Row]) -> list[str]:
    """What takes the time of each row that was profiled."""
    lines = ["", "What takes the time, by torch's operators"]
    for name, row in rows.items():
        shares = [f"{operator} {share:.0%}" for operator, share in row.parts.get("operators", {}).items()]
        lines += [f"{name}: {', '.join(shares)}"] if shares else []
    return lines


def to_json(args, bench: Bench, machine: dict, rows: dict[str, Row], skipped: dict[str, str]) -> dict:
    samples = bench.probe.samples
    return {
        "format": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "quick": args.quick,
        "device": args.device,
        "amp": args.amp,
        "machine": machine,
        "scale": dataclasses.asdict(bench.scale),
        "products_gflops": spread([sample.gflops for sample in samples]),
        "own_products_gflops": spread([sample.own_gflops for sample in samples]),
        "copy_gbytes_per_second": spread([sample.gbytes for sample in samples]),
        "rows": {
            name: {**row.to_dict(), "to_reach": ROWS[name][1], "deepcaption": ROWS[name][2]}
            for name, row in rows.items()
        },
        "skipped": skipped,
    }


def main(args) -> int:
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.folder) as folder:
        bench = make_bench(args, Path(folder))
        bench.probe()
        machine = describe(bench.device)
        print(header(machine))
        rows, skipped = measure(bench, args.only)
    print(f"\n{machine_line(bench)}")
    if args.profile:
        print("\n".join(profiles(rows)))
    if args.explain:
        print("\n".join(explanation(rows, bench)))
    if args.json:
        with atomic_write(args.json) as file:
            json.dump(to_json(args, bench, machine, rows, skipped), file, indent=1)
        print(f"all figures: {args.json}")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
