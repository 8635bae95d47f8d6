#!/usr/bin/env python3
"""Encode the images of a dataset once and keep the features in a file, so that training need not run the encoder.

    ./extract_features.py --dataset coco:train2014+coco:val2014 --extractor resnet152
    ./extract_features.py --dataset coco:train2014 --extractor resnet152-conv --dtype float16 --output_file conv.lmdb
    ./extract_features.py --image_dir photos/ --extractor efficientnet_lite2-conv,efficientnet_lite2-classes   # one run
    ./extract_features.py --image_dir photos/ --extractor efficientnet_lite0 --output_file photos.npy
    ./train.py --dataset coco:train2014 --features conv.lmdb --attention soft
    torchrun --nproc_per_node 4 extract_features.py ...                     # several GPUs or machines, into one file

The format follows from the extension: .lmdb, .npy (with .keys.txt), .bin (PicSOM) or .h5. The file names the encoder,
its weights and the image transform, so that a model trained on the file can caption photos. --resume continues an
interrupted run, also with another number of processes. Images that cannot be read are named and left out; the exit
status is then 1.
"""

import contextlib
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from captioning.command_line import Parser, add_device
from captioning.config import LARGEST_IMAGE
from captioning.errors import UserError, run

NORMALIZE = {  # how pixels 0..1 are normalised; None: as the encoder was trained
    "default": None,
    "skip": {"mean": [0.0] * 3, "std": [1.0] * 3},
    "subtract_half": {"mean": [0.5] * 3, "std": [1.0] * 3},
}


def parse_args(argv=None):
    parser = Parser(__doc__, processes=True)
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="sections of datasets.conf, or PATH[:SPLIT] of captions; several joined by +")
    add("--images", metavar="DIR", help="folder or zip file of the images of --dataset PATH (default: beside it)")
    add("--dataset_config_file", metavar="FILE", help="file of the datasets (default: datasets/datasets.conf)")
    add("--image_dir", metavar="DIR", help="a folder or zip file of images, whose names become keys, not a dataset")
    add(
        "--extractor",
        default="resnet152",
        metavar="NAMES",
        help="encoder; with -conv, its last map; several with commas",
    )
    add("--weights", metavar="FILE", help="local file of the encoder's weights; resnet152caffe-original needs it")
    add("--feature_type", choices=["plain", "avg", "max"], default="plain", help="avg, max: over ten crops")
    add("--normalize", choices=list(NORMALIZE), default="default", help="skip: 0..1; subtract_half: -0.5..0.5")
    add("--crop_size", type=int, metavar="PIXELS", help="width and height of the encoder's images (default: its own)")
    add("--image_size", type=int, metavar="PIXELS", help="avg, max: of images before cropping (default: 256/224 of it)")
    add("--output_dir", metavar="DIR", help="its folder (default: the dataset's features_path, else this folder)")
    add("--mirror", action="store_true", help="encode the images as in a mirror, as more data to train on")
    add("--output_file", metavar="NAME", help=".lmdb, .npy, .bin or .h5 (default: named by dataset, encoder and type)")
    add("--dtype", choices=["float32", "float16"], default="float32", help="type of the numbers in the file")
    add("--batch_size", default=32, metavar="N", help="images in a batch")
    add("--num_workers", type=int, metavar="N", help="processes that load images (default: all cores)")
    add("--convert", metavar="SOURCE", help="copy a folder of .npz files, or a .tsv of bottom-up features, to an .lmdb")
    add("--boxes", action="store_true", help="--convert: add five numbers to each region, of where its box is")
    add("--resume", action="store_true", help="continue an interrupted run")
    add("--force", action="store_true", help="replace an existing feature file, and what an interrupted run left")
    add_device(add)
    args = parser.parse_args(argv)
    if args.convert:
        if not (args.output_file or "").endswith(".lmdb") or "," in args.output_file:
            parser.error("--convert needs --output_file NAME.lmdb, one name without commas")
        if args.dataset or args.image_dir:
            parser.error("--convert takes no --dataset and no --image_dir")
        return args
    if args.boxes:
        parser.error("--boxes is for --convert")
    if bool(args.dataset) == bool(args.image_dir):
        parser.error("name either --dataset or --image_dir")
    if args.images and not args.dataset:
        parser.error("--images is for --dataset PATH; --image_dir encodes a folder of images")
    parser.at_least(1, args, "batch_size", "crop_size", "image_size")
    parser.at_least(0, args, "num_workers")
    parser.at_most(LARGEST_IMAGE, args, "crop_size", "image_size")  # what train.py takes from the file
    parser.at_most(1000, args, "num_workers")
    args.extractor = [name.strip() for name in args.extractor.split(",") if name.strip()]
    args.output_file = args.output_file and [name.strip() for name in args.output_file.split(",") if name.strip()]
    if not args.extractor or args.output_file == []:
        parser.error("--extractor and --output_file: give a name")
    if args.output_file and len(set(args.output_file)) != len(args.extractor):
        parser.error(f"--output_file: name a file for each of the encoders of --extractor ({len(args.extractor)})")
    if args.feature_type != "plain" and any(name.endswith(("-conv", "-tokens")) for name in args.extractor):
        parser.error(f"--feature_type {args.feature_type} is for vectors: maps of ten crops do not lie on one another")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

from captioning.cores import first_speaks, process_count
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.datasets.names import short_names
from captioning.features.partial import discard_partial, is_unfinished, partial_path, refuse_unfinished
from captioning.features.places import own_place
from captioning.files import check_writable, require_file
from captioning.next_steps import config_words, print_next


def items_by_key(dataset: CaptionDataset) -> dict[str, ImageItem]:
    """The images, the photos of stories too, by their keys; one that is in two parts of the dataset is there once."""
    items: dict[str, ImageItem] = {}
    for item in dataset.photos():
        other = items.setdefault(item.key, item)
        if (other.path, other.box) != (item.path, item.box):
            raise UserError(f"{other.path} and {item.path} would have the same key in the feature file, {item.key}")
    return items


class ExtractRun:
    """One run of this script. flags: those of parse_args, by name.

    prepare() opens the dataset and checks all that can be checked without torch; run() encodes, in every process that
    torchrun started, and gives the exit status; close() parts from the other processes.
    """

    def __init__(self, **flags):
        self.flags = SimpleNamespace(**flags)
        self.alone = process_count() == 1
        self.joined = False
        self.writers: list = []  # the first process has one for each encoder, None where its file is complete

    def prepare(self) -> None:
        flags = self.flags
        if flags.weights:
            require_file("--weights", flags.weights)
        if flags.image_dir:
            self.dataset = GenericDataset(image_dir=flags.image_dir)
        else:
            self.dataset = open_dataset(flags.dataset, flags.dataset_config_file, flags.images)
        self.dataset.require_images()
        self.paths = self.output_paths()
        self.items = items_by_key(self.dataset)
        for path in self.paths:
            if not path.exists():
                check_writable("--output_file", path)
        self.complete = self.alone and self.is_complete()  # of several processes the first one looks, in run()

    def output_paths(self) -> list[Path]:
        """Where the features of each encoder go. An absolute --output_file, or one with a folder, is taken as it is."""
        flags, names = self.flags, self.flags.output_file
        if names is None:
            source = short_names(flags.dataset) if flags.dataset else Path(flags.image_dir).resolve().name
            after = [flags.feature_type] + ([] if flags.normalize == "default" else [flags.normalize])
            after += ["mirror"] if flags.mirror else []
            parts = [[re.sub("[:/]", "-", name), *after] for name in flags.extractor]
            names = ["-".join([re.sub("[:/]", "-", source), *each]) + ".lmdb" for each in parts]
        own = self.dataset.features_path
        places = [own if flags.output_file is None or "/" not in name else None for name in names]
        return [Path(flags.output_dir or place or ".") / name for name, place in zip(names, places)]

    def is_complete(self) -> bool:
        """Whether --resume finds the files with all records.

        Raises UserError for a file, or records of an interrupted run, that must not be replaced.
        """
        complete = [self.has_all(path) for path in self.paths]  # each is looked at, for what must not be replaced
        return all(complete)

    def has_all(self, path: Path) -> bool:
        """`is_complete` of one file."""
        if self.flags.force or (self.flags.resume and is_unfinished(path)):
            return False
        refuse_unfinished(path)
        if not path.exists():
            return False
        if self.flags.resume:
            from captioning.features.factory import open_features

            if not open_features(path).missing(self.items):
                print(f"{path} has all {len(self.items):,} images")
                return True
        raise UserError(f"--output_file: {path} exists: --force replaces it")

    def run(self) -> int:
        import torch

        from captioning.devices import choose_device, from_main, share, start_processes, to_main
        from inference.extraction import PhotoEncoder, extract, share_of

        flags = self.flags
        start_processes(torch.device("cpu"))  # over the CPU: what they exchange are finished features
        self.joined = True
        if not self.alone and from_main(self.is_complete):
            return 0
        changes = {**(NORMALIZE[flags.normalize] or {}), **({"size": flags.crop_size} if flags.crop_size else {})}
        how = flags.feature_type, flags.image_size, flags.mirror
        encoder = PhotoEncoder(flags.extractor, flags.weights, changes, *how)
        encoder.to(choose_device(flags.device, flags.cpu))
        todo = from_main(lambda: self.open_writers(encoder))
        self.dataset.items = [self.items[key] for key in todo]
        bad: list[str] = []
        began = time.monotonic()
        with saying_how_to_go_on([writer.path for writer in self.open_ones]), contextlib.ExitStack() as stack:
            for writer in self.open_ones:
                stack.enter_context(writer)
            if todo:
                loader = share_of(self.dataset, encoder.transform, flags.batch_size, flags.num_workers)
                with contextlib.closing(loader):
                    extract(encoder, loader, self.writers, flags.dtype)
                    bad = sorted({message for messages in to_main(loader.bad_items) for message in messages})
        if self.writers:
            speed = len(todo) / (time.monotonic() - began)
            for writer in self.open_ones:
                print(f"{len(writer):,} records in {writer.path} ({speed:.0f} images/s)")
            if bad:
                print(self.dataset.bad_line(bad, "images could not be read and have no features"), file=sys.stderr)
            self.print_next(encoder)
        return share(1 if bad else 0)

    def open_writers(self, encoder) -> list[str]:
        """Open the files; gives the keys of the images that one of them lacks. Called in the first process only."""
        for number, path in enumerate(self.paths):
            complete = self.flags.resume and path.exists() and not is_unfinished(path)
            self.writers.append(None if complete else self.open_writer(encoder, number))
        todo = {key for writer in self.open_ones for key in writer.todo}
        return [key for key in self.items if key in todo]

    @property
    def open_ones(self) -> list:
        """The writers of files that are not complete."""
        return [writer for writer in self.writers if writer is not None]

    def open_writer(self, encoder, number: int):
        """The FeatureWriter of the encoder of that number."""
        from captioning.features.writer import FeatureWriter

        flags, path, shape = self.flags, self.paths[number], encoder.shapes[number]
        if flags.force and not flags.resume:
            discard_partial(path)
        writer = FeatureWriter(path, shape, flags.dtype, encoder.provenances[number], self.items, flags.resume)
        if not (flags.resume or flags.force) and path.exists():  # another process was faster
            writer.leave()
            self.is_complete()
        done = f", {len(writer):,} of them done already" if flags.resume else ""
        print(f"{len(self.items):,} images{done}")
        print(f"{flags.extractor[number]} {'x'.join(map(str, shape))} {flags.dtype} -> {path}", flush=True)
        return writer

    def print_next(self, encoder) -> None:
        """Print the line that trains on the files, where the images have a dataset."""
        flags = self.flags
        if flags.dataset is None:
            return
        images = ["--images", flags.images] if flags.images else []
        data = ["--dataset", flags.dataset, *images, *config_words(flags.dataset_config_file)]
        own = self.dataset.features_path
        names = [path.name if own and path.parent == Path(own) else str(path) for path in self.paths]
        features = ",".join(own_place(self.dataset.parts, name) for name in names)
        attention = ["--attention", "soft"] if any(len(shape) == 3 for shape in encoder.shapes) else []
        print_next(["train.py", *data, "--features", features, *attention])

    def close(self) -> None:
        if self.joined:
            from captioning.devices import end_processes

            end_processes()


@contextlib.contextmanager
def saying_how_to_go_on(paths: list[Path]):
    """Within it, a signal that ends the run leaves a line about what has been done of the feature files `paths`."""
    try:
        yield
    except KeyboardInterrupt:
        for path in filter(is_unfinished, paths):
            print(f"\n{partial_path(path)} has the records so far: add --resume to go on", file=sys.stderr)
        raise


def copy_features(source: str, flags) -> int:
    """--convert: write the features of `source` into one file. Returns the exit status."""
    from captioning.features.convert import convert

    path = Path(flags.output_dir or "") / flags.output_file
    if process_count() > 1:
        raise UserError("--convert runs as one process: run it by itself")
    if path.exists() and not flags.force and not (flags.resume and is_unfinished(path)):
        raise UserError(f"--output_file {path} exists: --force replaces it")
    if flags.force and not flags.resume:
        discard_partial(path)
    with saying_how_to_go_on([path]):
        count, left_out = convert(source, path, flags.dtype, flags.boxes, flags.resume)
    print(f"{count:,} records of {source} -> {path}")
    if left_out:
        print(f"{len(left_out):,} records could not be used and were left out", file=sys.stderr)
    return 1 if left_out else 0


def main(args) -> int:
    source = vars(args).pop("convert")
    if source:
        return copy_features(source, args)
    with contextlib.closing(ExtractRun(**vars(args))) as job:
        with first_speaks():
            job.prepare()
        if job.complete:
            return 0
        # torch is imported only now, so that the mistakes above are answered at once
        from captioning.devices import partners_may_fail

        with partners_may_fail():
            return job.run()


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
