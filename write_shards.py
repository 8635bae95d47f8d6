#!/usr/bin/env python3
"""Write the images and captions of a dataset into tar shards: a few large files, as the package webdataset reads them.

    ./write_shards.py --dataset coco:train2014 --output shards/train
    ./write_shards.py --dataset coco:train2014 --output shards/train --max_size 100M --image_size 256
    ./write_shards.py --dataset captions.csv --images photos --output shards/own --per_shard 1000 --resume

Each sample is 000000042.jpg, the file of the image byte for byte, and 000000042.json with its image_id, its key in
feature files and its captions, so that results and feature files of the dataset stay valid. With --image_size larger
images are shrunk and encoded anew. The section for datasets.conf is printed at the end. A shard that is there is
complete; --resume goes on after the last one, with the same --image_size and --quality (noted in
shards.json). Images that cannot be read are named and left out; the exit status is
then 1.
"""

import re
import sys

from captioning.command_line import Parser

SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?", re.I)  # "500M"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="sections of datasets.conf, or PATH[:SPLIT]; joined by +")
    add("--images", metavar="DIR", help="folder or zip file of the images of --dataset PATH (default: beside it)")
    add("--dataset_config_file", metavar="FILE", help="file of the datasets (default: datasets/datasets.conf)")
    add("--output", required=True, metavar="DIR", help="folder of the shards, made if missing")
    add("--prefix", default="shards", metavar="NAME", help="first part of their names, before -000000.tar")
    add("--max_size", default="500M", metavar="SIZE", help="most bytes of a shard, such as 500M or 2G")
    add("--per_shard", type=int, metavar="N", help="most images of a shard (default: as many as its size allows)")
    add("--image_size", type=int, metavar="PIXELS", help="shrink images whose shorter side is longer (default: never)")
    add("--quality", default=95, help="--image_size: quality of JPEG, WebP, AVIF and HEIC, 1 to 100")
    add("--num_workers", type=int, help="--image_size: parallel processes (default: all cores)")
    add("--resume", action="store_true", help="keep the shards that are there, and go on after them")
    args = parser.parse_args(argv)
    parser.at_least(1, args, "per_shard", "image_size", "quality")
    parser.at_least(0, args, "num_workers")
    parser.at_most(1000, args, "num_workers")
    parser.at_most(10_000, args, "image_size")
    parser.at_most(100, args, "quality")
    size = SIZE.fullmatch(args.max_size)
    if not size or float(size[1]) * UNITS[size[2].upper()] < 1:
        parser.error(f"--max_size {args.max_size[:60]}: give a number of bytes, such as 500M or 2G")
    args.max_size = int(float(size[1]) * UNITS[size[2].upper()])
    if "::" in args.output + args.prefix:
        parser.error("--output, --prefix: :: stands between the shards of a section: give names without it")
    if re.search(r"[/\\{},]", args.prefix) or not args.prefix:
        parser.error(f"--prefix {args.prefix[:60]!r}: give a name without / and braces")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from captioning.cores import core_count
from captioning.datasets.base import CaptionDataset, ImageItem, shared_ids
from captioning.datasets.factory import open_dataset
from captioning.datasets.names import short_names
from captioning.datasets.shard_index import BLOCK, read_shards, require_package
from captioning.errors import UserError, first_few, run, shown
from captioning.files import atomic_write, naming_file, read_json
from captioning.images.archives import archive_of, read_member
from captioning.images.encoding import OVERSAMPLING, encoded
from captioning.images.image_file import ImageError, image_error, image_size, open_image, resize_square
from captioning.images.kinds import EXTENSIONS
from captioning.locks import FileLock
from captioning.next_steps import config_words, print_next
from captioning.processes import in_chunks
from captioning.progress import Bar

CHUNK = 16  # images that a process encodes at a time
SETTINGS = "image_size", "quality"  # flags that all shards of a prefix are written with


@dataclass(frozen=True)
class Encoding:
    """How images are written. image_size: their longest shorter side in pixels, None: all as they are."""

    image_size: int | None
    quality: int


# ---- an image with its captions becomes a sample ----


def samples_of(chunk: Sequence[tuple[int, ImageItem]], encoding: Encoding) -> list[dict | str]:
    """`sample_of` of each."""
    return [sample_of(numbered, encoding) for numbered in chunk]


def sample_of(numbered: tuple[int, ImageItem], encoding: Encoding) -> dict | str:
    """The sample of (number, item): member content by ending, "__key__" the number; or what is wrong with the image."""
    number, item = numbered
    try:
        ending, content = picture_of(item, encoding)
    except ImageError as error:
        return str(error)
    about = {"image_id": item.image_id, "key": item.key, "captions": list(item.captions)}
    text = json.dumps(about, ensure_ascii=False).encode("utf-8", "backslashreplace")  # names may hold half characters
    return {"__key__": f"{number:09d}", ending: content, "json": text}


def picture_of(item: ImageItem, encoding: Encoding) -> tuple[str, bytes]:
    """The ending of an image's name and the content of its file. Raises ImageError where it cannot be read."""
    ending = os.path.splitext(item.path)[1].lower()
    ending = ending if ending in EXTENSIONS else ".jpg"
    if item.box is not None:
        from captioning.batches.pixels import cut  # it imports torch

        return "jpg", encoded(shrunk(cut(open_image(item.path), item), encoding), "region.jpg", encoding.quality)
    size = image_size(item.path)  # looks at the header
    if encoding.image_size is None or min(size) <= encoding.image_size:
        return ending[1:], content_of(item.path)
    image = open_image(item.path, size_hint=int(encoding.image_size * OVERSAMPLING))
    return ending[1:], encoded(shrunk(image, encoding), f"image{ending}", encoding.quality)


def shrunk(image, encoding: Encoding):
    """The PIL image, whose shorter side is at most that of `encoding`."""
    too_large = encoding.image_size is not None and min(image.size) > encoding.image_size
    return resize_square(image, encoding.image_size, keep_aspect=True) if too_large else image


def content_of(path: str) -> bytes:
    """The bytes of an image file, or of an image in an archive. Raises ImageError."""
    try:
        return read_member(path) if archive_of(path) else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise image_error(path, getattr(error, "strerror", None) or error) from error


# ---- samples become shards ----


class ShardFiles:
    """Writes samples into shards, each of which is there as soon as it is complete.

    place: number -> file of a shard; first: the number of the first one. Raises UserError where one cannot be written.
    """

    def __init__(self, place: Callable[[int], Path], first: int, max_size: int, per_shard: int | None):
        self.place, self.number, self.max_size, self.per_shard = place, first, max_size, per_shard
        self.open = ExitStack()
        self.tar, self.count, self.size = None, 0, 0

    def write(self, sample: dict) -> None:
        """Add a sample, to the next shard where this one is full."""
        contents = [content for ending, content in sample.items() if ending != "__key__"]
        size = sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in contents)
        if self.count and (self.size + size > self.max_size or self.count == self.per_shard):
            self.close()
        if self.tar is None:
            self.begin()
        self.tar.write(sample)
        self.count, self.size = self.count + 1, self.size + size

    def begin(self) -> None:
        from webdataset import TarWriter  # it imports torch

        file = self.open.enter_context(atomic_write(self.place(self.number), "wb"))
        # no encoder: the contents are bytes already; no time, so that the same samples make the same shard
        self.tar = self.open.enter_context(TarWriter(file, encoder=False, mtime=0))

    def close(self) -> None:
        """Complete the shard that is being written, if there is one."""
        if self.tar is not None:
            self.open.close()
            self.tar, self.count, self.size, self.number = None, 0, 0, self.number + 1

    def __enter__(self) -> "ShardFiles":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.open.__exit__(kind, error, trace)


def shard_path(folder: str, prefix: str, number: int) -> Path:
    """The file of a shard."""
    return Path(folder) / f"{prefix}-{number:06d}.tar"


def existing_shards(folder: str, prefix: str) -> list[Path]:
    """The shards that are there, in order. Raises UserError where one is missing before others."""
    name = re.compile(re.escape(prefix) + r"-([0-9]{6,})\.tar")
    there = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = sorted(int(found[1]) for one in there if (found := name.fullmatch(one)))
    for place, number in enumerate(numbers):
        if place != number:  # it would be replaced, or left beside shards of another time
            missing, later = (shard_path(folder, prefix, one) for one in (place, number))
            raise UserError(f"--output: {later} is there, but not {missing}: remove it and the shards after it")
    return [shard_path(folder, prefix, number) for number in numbers]


def items_done(shards: Sequence[Path], items: Sequence[ImageItem]) -> tuple[int, int]:
    """How many of `items` come before what is to be written after `shards`, and how many of these are in them.

    Raises UserError where a shard is damaged or was written from other data.
    """
    done, written = 0, 0
    for shard in read_shards([str(path) for path in shards]):
        if shard.damaged:
            raise UserError(f"--resume: {shard.path}: {shard.damaged[0]}: remove it and the shards after it")
        for sample in shard.samples:
            number = int(stem) if (stem := sample.name.partition(".")[0]).isdecimal() else -1
            item = items[number] if done <= number < len(items) else None
            about = sample.image_id, sample.key, sample.captions
            if item is None or about != (item.image_id, item.key, item.captions):
                raise UserError(f"--resume: {shard.path} holds other images or captions: give another --output")
            done, written = number + 1, written + 1
    return done, written


def hold_settings(args, resume: bool) -> None:
    """Note in PREFIX.json, beside the shards, how their images are written.

    Raises UserError where `resume` is True and the shards that are there were written with others.
    """
    noted = Path(args.output) / f"{args.prefix}.json"
    given = {name: getattr(args, name) for name in SETTINGS}
    before = read_json(noted, "--resume") if resume and noted.exists() else given
    if not isinstance(before, dict):
        raise UserError(f"--resume: {noted} is no file of write_shards.py")
    if changed := [name for name in SETTINGS if before.get(name) != given[name]]:
        said = ", ".join(f"--{name} {before.get(name) or 'none'} (now {given[name] or 'none'})" for name in changed)
        raise UserError(f"--resume: the shards that are there were written with {said[:200]}: give another --output")
    if before is given:
        with atomic_write(noted) as file:
            json.dump(given, file)


def require_single_images(dataset: CaptionDataset) -> None:
    """Raises UserError where shards cannot hold the dataset."""
    dataset.require_images()
    if dataset.items.have_photos:
        raise UserError(f"--dataset {dataset.name}: a sample of a shard is one image, not a story of several")
    if shared := shared_ids(dataset):
        twice = first_few(shared)
        raise UserError(f"--dataset {dataset.name}: parts share ids ({twice}): write each part into its own shards")


# ---- what is said ----


def section(dataset: CaptionDataset, spec: str, pattern: str) -> list[str]:
    """The lines for datasets.conf, a heading first."""
    name = re.sub(r"[^\w.-]+", "-", short_names(spec))
    urls = re.sub(r"([{}\\])", r"\\\1", os.path.abspath(os.path.dirname(pattern)))
    lines = [f"[{name}-shards]", "dataset_class = WebDataset", f"urls = {urls}/{os.path.basename(pattern)}"]
    lines += [f"features_path = {os.path.abspath(dataset.features_path)}"] if dataset.features_path else []
    return [line.replace("%", "%%") for line in lines]


def main(args) -> int:
    require_package()
    dataset = open_dataset(args.dataset, args.dataset_config_file, args.images)
    require_single_images(dataset)
    with naming_file(args.output):
        os.makedirs(args.output, exist_ok=True)
    lock = FileLock(Path(args.output) / f".{args.prefix}.lock", f"{args.prefix}-*.tar in {args.output}")
    try:
        return write(args, dataset)
    finally:
        lock.release(remove=True)


def write(args, dataset: CaptionDataset) -> int:
    """Write the shards that are missing. Gives the exit status."""
    shards = existing_shards(args.output, args.prefix)
    if shards and not args.resume:
        raise UserError(f"--output: {shards[0]} is there already: --resume goes on after it, or give another folder")
    items = dataset.items
    done, earlier = items_done(shards, items) if args.resume else (0, 0)
    hold_settings(args, resume=bool(shards))
    bad = done - earlier  # those that could not be read before
    encoding = Encoding(args.image_size, args.quality)
    changes = args.image_size is not None or any(item.box for item in items)
    workers = (core_count() if args.num_workers is None else args.num_workers) if changes else 0
    todo = ((number, items[number]) for number in range(done, len(items)))
    work = partial(samples_of, encoding=encoding)
    place = partial(shard_path, args.output, args.prefix)
    with (
        closing(in_chunks(work, todo, workers, CHUNK if workers > 1 else 1)) as chunks,
        Bar(len(items), "write", "image", done, stream=sys.stderr) as bar,
        ShardFiles(place, len(shards), args.max_size, args.per_shard) as files,
    ):
        for sample in bar.over(sample for _, samples in chunks for sample in samples):
            if isinstance(sample, str):
                bar.tell(shown(f"write_shards.py: {sample}"))
                bad += 1
            else:
                files.write(sample)
    if not files.number:
        raise UserError(f"--dataset {args.dataset}: none of its {len(items)} images can be read")
    report(args, dataset, files.number, len(items) - earlier - bad, earlier, bad)
    return 1 if bad or dataset.damaged else 0


def report(args, dataset: CaptionDataset, count: int, written: int, earlier: int, bad: int) -> None:
    """Say what was written, and how it is used."""
    before = f", {earlier:,} there already" if earlier else ""
    print(f"{args.output}: {count} shards; {written:,} images written{before}, {bad} could not be read")
    lines = section(dataset, args.dataset, f"{args.output}/{args.prefix}-{{000000..{count - 1:06d}}}.tar")
    print("for datasets.conf:", *(f"  {line}" for line in lines), sep="\n")
    print_next(["train.py", "--dataset", lines[0][1:-1], *config_words(args.dataset_config_file)])


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
