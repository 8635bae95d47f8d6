#!/usr/bin/env python3
"""Shrink a folder of images once, so that training reads small files.

    ./resize.py --image_dir coco/images/train2014 --output_dir coco/images/train2014_256x256
    ./resize.py --image_dir photos --output_dir photos_256 --keep_aspect      # shorter side 256
    ./resize.py --image_dir photos --output_dir small --subset ids.txt --create_zip      # small/ and small.zip

Every image below --image_dir is written under the same name, subfolder and extension, so that the `file_name`s of an
annotation file stay valid. A GIF stays a GIF, first frame only, in 256 colours. A second run skips images that are
already there, complete, of the right size and newer than their source (whatever their --quality); a zip is always
written anew. From 2,000 images per process on, torch resizes the images: 1.5 times as fast in all, and 0.006 grey
levels from Pillow's result. Broken images are named on stderr and in --report; the exit status is then 1.
"""

import sys

from captioning.command_line import Parser


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--image_dir", required=True, help="folder of the original images, searched with its subfolders")
    add("--output_dir", required=True, help="folder for the resized images, made if missing")
    add("--image_size", default=256, help="width and height of the result, in pixels")
    add("--keep_aspect", action="store_true", help="keep the proportions: the shorter side gets --image_size pixels")
    add("--subset", metavar="FILE", help="resize only these images: a file name a line, with or without extension")
    add("--create_zip", action="store_true", help="also write the images into one file, OUTPUT_DIR.zip")
    add("--num_workers", type=int, help="parallel processes (default: one per core; 0 or 1: no other process)")
    add("--quality", default=95, help="quality of JPEG, WebP, AVIF and HEIC, 1 to 100")
    add("--report", metavar="FILE", help="CSV file to write: the images that failed, and why")
    args = parser.parse_args(argv)
    parser.at_least(1, args, "image_size")
    parser.at_least(0, args, "num_workers")
    parser.at_most(1000, args, "num_workers")
    parser.at_most(10_000, args, "image_size")
    if not 1 <= args.quality <= 100:
        parser.error(f"--quality: {args.quality} is out of range; give 1 to 100")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import os
import zipfile
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_start_method
from pathlib import Path

from captioning.cores import core_count
from captioning.errors import UserError, first_few, run, shown, warn
from captioning.files import atomic_write, read_lines, remove_leftovers
from captioning.images import image_file
from captioning.images.encoding import OVERSAMPLING, encoded
from captioning.images.image_file import ImageError, image_error, open_image, target_size
from captioning.images.kinds import KNOWN_FORMATS
from captioning.images.listing import PassedOver, list_images
from captioning.next_steps import print_next
from captioning.processes import in_processes
from captioning.progress import Bar
from captioning.signals import serve
from captioning.tables import csv_lines

# torch resizes in a fifth of Pillow's time and takes two seconds to import: it pays from this many images per process.
TORCH_FROM = 2000


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know."""

    image_dir: Path
    output_dir: Path
    image_size: int
    keep_aspect: bool
    quality: int
    with_torch: bool = False


@dataclass(frozen=True)
class Outcome:
    name: str  # relative to image_dir
    status: str  # "resized", "kept" or "failed"
    reason: str = ""


def resize_one(name: str, settings: Settings) -> Outcome:
    """Resize image `name` (runs in a worker). A bad image is an Outcome; a disk that cannot be written a UserError."""
    source, target = settings.image_dir / name, settings.output_dir / name
    try:
        if is_done(source, target, settings):
            return Outcome(name, "kept")
        image = open_image(source, size_hint=int(settings.image_size * OVERSAMPLING))
        width, height = target_size(image.size, settings.image_size, settings.keep_aspect)
        if width * height > image_file.MAX_PIXELS:
            raise image_error(source, f"too narrow: it would become {width}x{height}")
        data = encoded(shrunk(image, settings), source, settings.quality)
    except ImageError as error:
        return Outcome(name, "failed", error.reason)
    try:
        # Waiting for the disk at each image would take as long as resizing it: main() does so once at the end. What a
        # power failure before that leaves damaged is_done() finds, when the command is run again.
        with atomic_write(target, "wb", flush=False) as file:
            file.write(data)
    except UserError as error:
        raise UserError(f"--output_dir: {error}") from error
    return Outcome(name, "resized")


def shrunk(image, settings: Settings):
    if settings.with_torch and image.mode == "RGB":
        from captioning.images.torch_resize import tensor_resize

        small = tensor_resize(image, target_size(image.size, settings.image_size, settings.keep_aspect))
        if small is not None:
            return small
    return image_file.resize_square(image, settings.image_size, settings.keep_aspect)


def is_done(source: Path, target: Path, settings: Settings) -> bool:
    """Is `target` there, newer than its source, of the size it should have, and readable to the end?"""
    try:
        if target.stat().st_mtime < source.stat().st_mtime or ends_in_zeros(target):
            return False
        size = image_file.image_size(source) if settings.keep_aspect else (1, 1)  # a square needs no look at the source
        return open_image(target).size == target_size(size, settings.image_size, settings.keep_aspect)
    except (OSError, ImageError):
        return False


def ends_in_zeros(path: Path) -> bool:
    """As a power failure leaves a file whose length reached the disk and whose last part did not; a JPEG decodes."""
    with open(path, "rb") as file:
        file.seek(-min(16, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return not any(file.read())


def begin_worker(parent: int, with_torch: bool) -> None:
    serve(parent)
    if with_torch:
        from captioning.fast.threads import use_cores

        use_cores(1)  # the processes share the cores already


def select(names: list[str], subset: str) -> tuple[list[str], list[str]]:
    """The names that the lines of file `subset` stand for, and the lines that stand for none."""
    lines = read_lines(subset, "--subset", "surrogateescape")
    ids = dict.fromkeys(filter(None, map(str.strip, lines)))
    chosen, used = [], set()
    for name in names:
        path = Path(name)
        hits = {name, path.name, path.stem, str(path.with_suffix(""))} & ids.keys()
        used |= hits
        if hits:
            chosen.append(name)
    if not chosen:
        raise UserError(f"--subset: none of the {len(ids)} ids in {subset} is an image of --image_dir")
    return chosen, [line for line in ids if line not in used]


def find_images(image_dir: Path, output_dir: Path) -> list[str]:
    """Names below `image_dir`, relative to it, without those in `output_dir` where that lies inside."""
    if not image_dir.is_dir():
        raise UserError(f"--image_dir: no such folder: {image_dir}")
    source, target = image_dir.resolve(), output_dir.resolve()
    if source == target or target in source.parents:
        raise UserError(f"--output_dir: {output_dir} must not be or hold --image_dir: originals could be overwritten")
    passed = PassedOver()
    paths = list_images(image_dir, recursive=True, passed=passed)
    if source in target.parents:
        paths = [path for path in paths if target not in path.resolve().parents]
    if not paths:
        raise UserError(f"--image_dir: {image_dir} has no images ({KNOWN_FORMATS})")
    if line := passed.line():
        print(f"resize.py: {line}", file=sys.stderr)
    names = [str(path.relative_to(image_dir)) for path in paths]
    times = Counter(map(str.lower, names))
    if twins := [name for name in names if times[name.lower()] > 1]:
        warn(
            f"{len(twins)} names differ in capitals alone, and are one file on a Mac and on Windows: {first_few(twins)}"
        )
    return names


@contextmanager
def open_zip(path: Path):
    """A zipfile.ZipFile to write `path` with; the file is there when all of it is written."""
    # JPEGs do not deflate; a zip knows no time before 1980
    options = {"compression": zipfile.ZIP_STORED, "strict_timestamps": False}
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w", **options) as members:
        yield members


def resize_all(names: list[str], settings: Settings, workers: int, archive: Path | None) -> tuple[Counter, list]:
    """How many images were "resized", "kept" and "failed", and (name, reason) of each that failed, which is printed.

    archive: a zip file that they go to as well.
    """
    counts, failures = Counter(), []
    with ExitStack() as stack:
        if archive:
            members = stack.enter_context(open_zip(archive))
        if settings.with_torch and workers > 1 and get_start_method() == "fork":
            import captioning.images.torch_resize  # noqa: F401  once here instead of once in each process
        work = partial(resize_one, settings=settings)
        outcomes = stack.enter_context(in_processes(work, names, workers, begin_worker, (settings.with_torch,)))
        bar = stack.enter_context(Bar(len(names), "resize", "image", stream=sys.stderr))
        for outcome in bar.over(outcomes):
            counts[outcome.status] += 1
            if outcome.status == "failed":
                failures.append((outcome.name, outcome.reason))
                bar.tell(shown(f"resize.py: {settings.image_dir / outcome.name}: {outcome.reason}"))
            elif archive:
                members.write(settings.output_dir / outcome.name, Path(outcome.name).as_posix())
    if counts["resized"] and hasattr(os, "sync"):
        os.sync()  # what is said to be done is on the disk
    return counts, failures


def main(args) -> int:
    image_dir, output_dir = Path(args.image_dir), Path(args.output_dir)
    if args.create_zip and output_dir.suffix.lower() == ".zip":  # the zip was named, not the folder
        output_dir = output_dir.with_suffix("")
    names, failures = find_images(image_dir, output_dir), []
    if args.subset:
        names, lines = select(names, args.subset)
        failures = [(line, "in --subset, but there is no such image") for line in lines]
    for line, reason in failures:
        print(shown(f"resize.py: {line}: {reason}"), file=sys.stderr)

    archive = output_dir.with_name(output_dir.name + ".zip") if args.create_zip else None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir: cannot make {output_dir}: {error.strerror or error}") from error
    workers = core_count() if args.num_workers is None else args.num_workers
    with_torch = len(names) >= TORCH_FROM * max(1, workers)
    for place in {output_dir / Path(name).parent for name in names}:
        remove_leftovers(place)
    settings = Settings(image_dir, output_dir, args.image_size, args.keep_aspect, args.quality, with_torch)
    counts, failed = resize_all(names, settings, workers, archive)
    failures += failed
    if args.report:
        with atomic_write(args.report) as file:
            file.write(csv_lines([("file", "reason"), *failures]))
    shape = f"shorter side {args.image_size}" if args.keep_aspect else f"{args.image_size}x{args.image_size}"
    kept = f", {counts['kept']} already there" if counts["kept"] else ""
    print(f"{output_dir}: {counts['resized']} images resized ({shape}){kept}, {len(failures)} failed")
    if archive:
        print(f"{archive}: {counts['resized'] + counts['kept']} images")
    print_next(["train.py", "--images", archive or output_dir, "--captions", "CAPTIONS", "--val_fraction", 0.1])
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
