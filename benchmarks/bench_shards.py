#!/usr/bin/env python3
"""Tar shards at work: every picture once over several processes, a kill in the middle, and the rate beside a folder.

    benchmarks/bench_shards.py                       # 100,000 made-up photos in 200 shards: 3 GB in a temporary folder
    benchmarks/bench_shards.py --images 2000 --shards 20
    benchmarks/bench_shards.py --folder DIR          # keeps the data in DIR for the next call

Two processes with two workers each load an epoch, as train.py under torchrun does, and note how far they are. They are
killed in the middle and begun anew from what they noted last. Each picture must have come once then. The rate is that
of one process with two workers that reads the same pictures, in turn from the folder and from the shards; all files are
in the system's memory. The exit status is 1 where a picture was lost or came twice.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.command_line import Parser
from captioning.errors import UserError, run


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--images", default=100_000, metavar="N", help="made-up photos")
    add("--shards", default=200, metavar="N", help="tar shards")
    add("--size", default=128, metavar="PIXELS", help="width and height of the photos")
    add("--processes", default=2, metavar="N", help="processes that share the epoch")
    add("--workers", default=2, metavar="N", help="workers of each process")
    add("--rounds", default=3, metavar="N", help="measurements of the rate, of which the median counts; 0: none")
    add("--rate_images", default=20_000, metavar="N", help="most images of a measurement")
    add("--no_kill", action="store_true", help="only measure the rate")
    add("--folder", metavar="DIR", help="where the data go, and stay (default: a temporary folder)")
    args = parser.parse_args(argv)
    parser.at_least(1, args, "images", "shards", "size", "processes", "rate_images")
    parser.at_least(0, args, "workers", "rounds")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from captioning.cores import core_count
from captioning.datasets.base import CaptionDataset
from captioning.datasets.factory import open_dataset
from captioning.encoder.transforms import ImageTransform
from captioning.images.archives import archive_of
from captioning.processes import in_processes
from captioning.text.tokens import SPECIALS
from data_loader import Loader, LoaderSettings, get_loader
from vocabulary import Vocabulary

BATCH = 32
TEXT = "a made-up photo"


# ---- the data ----


def draw(number: int, folder: Path, size: int) -> None:
    """Write the photo of that number: smooth noise with grain."""
    random = np.random.default_rng(number)
    smooth = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (size, size, 1))
    pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=90)


def make_data(folder: Path, args) -> str:
    """Photos in a folder, and the same in shards; gives the datasets.conf of `photos` and `shards`."""
    config, photos = folder / "datasets.conf", folder / "photos"
    if config.exists():
        return str(config)
    photos.mkdir(parents=True)
    with in_processes(partial(draw, folder=photos, size=args.size), range(args.images), core_count()) as drawn:
        for _ in drawn:
            pass
    names = [f"{number:06d}.jpg" for number in range(args.images)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": TEXT} for number in range(args.images)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    text = f"[photos]\ndataset_class = CocoDataset\nimage_dir = {photos}\ncaption_path = {folder}/captions.json\n"
    config.write_text(text)
    count = -(-args.images // args.shards)
    script = Path(__file__).resolve().parent.parent / "write_shards.py"
    flags = [
        "--dataset",
        "photos",
        "--dataset_config_file",
        config,
        "--output",
        folder / "shards",
        "--per_shard",
        count,
    ]
    subprocess.run([sys.executable, script, *map(str, flags)], check=True, stdout=subprocess.DEVNULL)
    last = -(-args.images // count) - 1
    urls = f"{folder}/shards/shards-{{000000..{last:06d}}}.tar"
    config.write_text(f"{text}[shards]\ndataset_class = WebDataset\nurls = {urls}\n")
    return str(config)


def open_loader(dataset: CaptionDataset, size: int, **settings) -> Loader:
    """Batches of BATCH pictures with a caption each, as train.py makes them with random crops."""
    transform = ImageTransform(size, train=True)
    vocabulary = Vocabulary([*SPECIALS, *sorted(TEXT.split())])
    settings = LoaderSettings(batch_size=BATCH, captions_per_image=1, **settings)
    return get_loader(dataset, vocabulary, (), settings, transform)


# ---- every picture once ----


def share(dataset: CaptionDataset, args, folder: Path, rank: int) -> None:
    """What one of several processes does: load its part of epoch 1 from where it was, and note each batch."""
    log = folder / f"batches.{rank}"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    loader = open_loader(dataset, args.size, num_workers=args.workers, rank=rank, world_size=args.processes)
    loader.set_position(1, done)
    with open(log, "a", buffering=1) as file:
        for batch in loader:
            file.write(json.dumps([item.image_id for item in batch.items]) + "\n")
    loader.close()


def start(work: Callable[[int], None], count: int) -> list:
    """`count` processes, each a group of its own with its workers."""

    def begin(rank: int) -> None:
        os.setpgid(0, 0)
        work(rank)

    children = [multiprocessing.get_context("fork").Process(target=begin, args=(rank,)) for rank in range(count)]
    for child in children:
        child.start()
    return children


def kill_and_go_on(dataset: CaptionDataset, args, folder: Path) -> Counter:
    """How often each image came in an epoch in the middle of which all processes were killed."""
    half, logs = len(dataset) // (2 * BATCH), [folder / f"batches.{rank}" for rank in range(args.processes)]
    children = start(partial(share, dataset, args, folder), args.processes)
    while count_lines(logs) < half and any(child.is_alive() for child in children):
        time.sleep(0.01)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.join()
    for log in filter(Path.exists, logs):
        text = log.read_text()
        log.write_text(text[: text.rfind("\n") + 1])  # a line that the kill has cut was not noted
    print(f"killed after {count_lines(logs)} of {-(-len(dataset) // BATCH)} batches")
    for child in start(partial(share, dataset, args, folder), args.processes):
        child.join()
        if child.exitcode:
            raise UserError(f"a process ended with status {child.exitcode}")
    return Counter(image_id for log in logs for line in log.read_text().splitlines() for image_id in json.loads(line))


def count_lines(logs: list[Path]) -> int:
    """The whole lines of files that may not be there yet."""
    return sum(log.read_bytes().count(b"\n") for log in logs if log.exists())


# ---- the rate ----


def rate(dataset: CaptionDataset, args, epoch: int) -> float:
    """Images a second, after the workers have begun."""
    with contextlib.closing(open_loader(dataset, args.size, num_workers=args.workers)) as loader:
        loader.set_position(epoch)
        batches, count = iter(loader), 0
        for _ in range(2 * args.workers + 1):
            next(batches, None)
        began = time.perf_counter()
        for batch in batches:
            count += len(batch.items)
            if count >= args.rate_images:
                break
        return count / (time.perf_counter() - began)


def compare(photos: CaptionDataset, shards: CaptionDataset, args) -> None:
    """Print the rates of the folder and of the shards, measured in turn, and their quotient."""
    files = {item.path for item in photos.items} | {archive_of(item.path) for item in shards.items}
    for path in sorted(files):  # into the system's memory
        Path(path).read_bytes()
    rates = {"folder": [], "shards": []}
    for number in range(args.rounds):
        rates["folder"].append(rate(photos, args, number))
        rates["shards"].append(rate(shards, args, number))
        print(f"folder {rates['folder'][-1]:,.0f} images/s, shards {rates['shards'][-1]:,.0f}", flush=True)
    quotient = statistics.median(one / other for one, other in zip(rates["shards"], rates["folder"]))
    folder, tars = (statistics.median(found) for found in rates.values())
    print(f"median: folder {folder:,.0f} images/s, shards {tars:,.0f}; shards / folder {quotient:.2f}")


def main(args) -> int:
    with contextlib.ExitStack() as stack:
        folder = Path(args.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        config = make_data(folder, args)
        began = time.monotonic()
        shards = open_dataset("shards", config)
        print(f"{len(shards):,} images in {args.shards} shards, opened in {time.monotonic() - began:.1f} s", flush=True)
        wrong = 0
        if not args.no_kill:
            with tempfile.TemporaryDirectory(dir=folder) as notes:
                seen = kill_and_go_on(shards, args, Path(notes))
            lost, twice = len(shards) - len(seen), sum(count > 1 for count in seen.values())
            wrong = lost + twice
            how = f"{args.processes} processes x {args.workers} workers, killed in the middle and resumed"
            print(f"{how}: {len(seen):,} images, {lost} lost, {twice} twice", flush=True)
        if args.rounds:
            compare(open_dataset("photos", config), shards, args)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
