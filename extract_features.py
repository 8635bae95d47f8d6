#!/usr/bin/env python3
"""Run an encoder over a dataset once and keep what it says, so that training need not run it again.

    ./extract_features.py --dataset coco:train2014+coco:val2014 --extractor resnet152
    ./extract_features.py --dataset coco:train2014 --extractor resnet152-conv --dtype float16 --output_file conv.lmdb
    ./extract_features.py --image_dir photos/ --extractor efficientnet_lite0 --output_file photos.npy
    ./train.py --dataset coco:train2014 --features conv.lmdb --attention soft
    torchrun --nproc_per_node 4 extract_features.py ...                     # several GPUs or machines, into one file

The format follows from the extension: .lmdb, .npy (with .keys.txt), .bin (PicSOM) or .h5. What made the features is
kept with them, so that a model trained on the file can caption photos. An interrupted run goes on with --resume, also
with another number of processes. Images that cannot be read are named and left out; the exit status is then 1.
"""

import argparse
import contextlib
import io
import os
import sys
import time
from pathlib import Path

from captioning.errors import UserError, run

NORMALIZE = {  # how pixels 0..1 are normalised; None: as the encoder was trained
    "default": None,
    "skip": {"mean": [0.0] * 3, "std": [1.0] * 3},
    "subtract_half": {"mean": [0.5] * 3, "std": [1.0] * 3},
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", help="sections of datasets.conf, several joined by +")
    add("--dataset_config_file", help="the datasets.conf to use (default: see README)")
    add("--image_dir", help="a folder or zip file of images instead of a dataset; keys are the file names")
    add("--extractor", default="resnet152", help="encoder by name, with -conv its last map (default resnet152)")
    add(
        "--weights",
        metavar="FILE",
        help="local file with the encoder's weights instead of a download; resnet152caffe-original needs it",
    )
    add(
        "--feature_type",
        choices=["plain", "avg", "max"],
        default="plain",
        help="plain: of the whole image; avg, max: over ten crops, corners and middle, mirrored too (default plain)",
    )
    add(
        "--normalize",
        choices=list(NORMALIZE),
        default="default",
        help="pixels: as the encoder expects, 0..1 as they are, or minus one half (default: default)",
    )
    add("--crop_size", type=int, help="pixels of the side that the encoder sees (default: the encoder's own)")
    add(
        "--image_size",
        type=int,
        help="avg, max: side the image is resized to before cropping (default: crop_size * 256/224)",
    )
    add("--output_dir", help="folder of the output (default: the dataset's features_path, or else this folder)")
    add(
        "--output_file",
        metavar="NAME",
        help=".lmdb, .npy, .bin or .h5 (default: DATASET-EXTRACTOR-TYPE.lmdb, with -NORMALIZE if set)",
    )
    add("--dtype", choices=["float32", "float16"], default="float32", help="type of the numbers kept (default float32)")
    add("--batch_size", type=int, default=32, help="images in a batch (default 32)")
    add("--num_workers", type=int, help="processes that load images (default: all cores)")
    add("--resume", action="store_true", help="go on after an interruption")
    add("--force", action="store_true", help="replace a feature file that exists")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    args = parser.parse_args(argv)
    if bool(args.dataset) == bool(args.image_dir):
        parser.error("name either --dataset or --image_dir")
    for name, least in (("batch_size", 1), ("crop_size", 1), ("image_size", 1), ("num_workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} {value}: at least {least}")
    if args.feature_type != "plain" and args.extractor.endswith("-conv"):
        parser.error(f"--feature_type {args.feature_type} is for vectors: maps of ten crops do not lie on one another")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import numpy as np
import torch

from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.devices import choose_device, end_processes, from_main, is_main, process, start_processes, to_main
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.encoder.ten_crops import pooled_crops
from captioning.encoder.transforms import TenCrops, image_transform
from captioning.features.factory import open_features
from captioning.features.writer import FeatureWriter
from captioning.progress import Bar
from data_loader import get_eval_loader


def output_path(args, dataset) -> Path:
    """Where the features go. An absolute --output_file, or one with a folder, is taken as it is."""
    name = args.output_file
    if name is None:
        source = args.dataset or Path(args.image_dir).resolve().name
        parts = [source.replace(":", "-").replace("/", "-"), args.extractor.replace(":", "-"), args.feature_type]
        parts += [] if args.normalize == "default" else [args.normalize]
        name = "-".join(parts) + ".lmdb"
    folder = args.output_dir or (dataset.features_path if args.output_file is None or "/" not in name else None)
    return Path(folder or ".") / name


def items_by_key(dataset: CaptionDataset) -> dict[str, ImageItem]:
    """The images, the photos of stories too, by their keys; one that is in two parts of the dataset is there once."""
    items: dict[str, ImageItem] = {}
    for item in dataset.photos():
        other = items.setdefault(item.key, item)
        if (other.path, other.box) != (item.path, item.box):
            raise UserError(f"{other.path} and {item.path} would have the same key in the feature file, {item.key}")
    return items


def load_extractor(args) -> ImageEncoder:
    """The encoder with the pixels' size and normalisation that the flags ask for."""
    changes = dict(NORMALIZE[args.normalize] or {})
    if args.crop_size:
        changes["size"] = args.crop_size
    return build_encoder(args.extractor, weights=args.weights, transform=changes or None)


@torch.inference_mode()
def encode(extractor: ImageEncoder, pixels: torch.Tensor, feature_type: str) -> torch.Tensor:
    """pixels (B, 3, S, S), or (B, 10, 3, S, S) of ten crops -> features (B, D) or (B, D, h, w)."""
    return extractor(pixels) if feature_type == "plain" else pooled_crops(extractor, pixels, feature_type)


def extract(extractor: ImageEncoder, loader, writer: FeatureWriter | None, feature_type: str, dtype: str) -> None:
    """Encode the loader's images. Every process encodes its share; the first one, which has the writer, writes all.

    The shares go to it batch by batch, so that the file and what --resume finds of it are the same for any number of
    processes.
    """
    bar = None if writer is None else Bar(len(loader.items), "extracting", "image")
    batches = iter(loader)
    for _ in range(from_main(lambda: len(loader))):
        batch = next(batches, None)
        share = None
        if batch is not None:
            pixels = batch.pixels.to(extractor.mean.device, non_blocking=True)
            features = encode(extractor, pixels, feature_type).cpu().numpy()
            with np.errstate(over="ignore"):  # the writer tells of values that are too large
                share = [item.key for item in batch.items], features.astype(dtype, copy=False), len(batch.bad)
        for keys, features, bad in filter(None, to_main(share)):
            for key, row in zip(keys, features):
                writer.write(key, row)
            bar.update(len(keys) + bad)
    if bar is not None:
        bar.close()


def describe(args, extractor: ImageEncoder) -> tuple[object, dict]:
    """The image transform, and what is noted in the file as the provenance of the features."""
    size, interpolation = extractor.transform["size"], extractor.transform["interpolation"]
    provenance = {"extractor": args.extractor, "weights_sha256": extractor.weights_sha256}
    provenance |= {"transform": extractor.transform, "feature_type": args.feature_type}
    if args.feature_type == "plain":
        return image_transform(size, interpolation), provenance
    transform = TenCrops(size, args.image_size or round(size * 256 / 224), interpolation)
    return transform, {**provenance, "image_size": transform.image_size}


def is_complete(args, path: Path, items: dict[str, ImageItem]) -> bool:
    """Whether --resume finds the file there with all records. Raises UserError for a file that must not be replaced."""
    if not path.exists() or args.force:
        return False
    if args.resume and not open_features(path).missing(items):
        print(f"{path} has all {len(items):,} images")
        return True
    raise UserError(f"--output_file: {path} exists: --force replaces it")


def share_of(dataset: CaptionDataset, args, transform):
    """The loader of this process' share of the images; the first process tells of images that are missing."""
    rank, count = process()
    workers = args.num_workers
    if workers is None and count > 1:  # the machine's cores are for all processes on it
        workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    silence = contextlib.nullcontext() if rank == 0 else contextlib.redirect_stderr(io.StringIO())
    with silence:
        settings = {"batch_size": args.batch_size, "num_workers": workers}
        return get_eval_loader(dataset, transform=transform, rank=rank, world_size=count, **settings)


def main(args) -> int:
    start_processes(torch.device("cpu"))  # over the CPU: what they exchange are finished features
    try:
        return extract_dataset(args)
    finally:
        end_processes()


def extract_dataset(args) -> int:
    if args.image_dir:
        dataset = GenericDataset(image_dir=args.image_dir)
    else:
        dataset = open_dataset(args.dataset, args.dataset_config_file)
    dataset.require_images()
    path = output_path(args, dataset)
    items = items_by_key(dataset)
    if from_main(lambda: is_complete(args, path, items)):
        return 0
    extractor = load_extractor(args).to(choose_device(args.device, args.cpu))
    transform, provenance = describe(args, extractor)
    shape = extractor.shape
    writer: FeatureWriter | None = None

    def open_writer() -> list[str]:
        nonlocal writer
        writer = FeatureWriter(path, shape, args.dtype, provenance, keys=items, resume=args.resume)
        done = f", {len(writer):,} of them done already" if args.resume else ""
        print(f"{len(items):,} images{done}")
        print(f"{args.extractor} {'x'.join(map(str, shape))} {args.dtype} -> {path}", flush=True)
        return writer.todo

    dataset.items = [items[key] for key in from_main(open_writer)]
    bad: list[str] = []
    began = time.monotonic()
    with contextlib.nullcontext() if writer is None else writer:
        if dataset.items:
            loader = share_of(dataset, args, transform)
            extract(extractor, loader, writer, args.feature_type, args.dtype)
            bad = sorted({message for messages in to_main(loader.bad_items) for message in messages})
            loader.close()
    if is_main():
        speed = len(dataset.items) / (time.monotonic() - began)
        print(f"{len(writer):,} records in {path} ({speed:.0f} images/s)")
        if bad:
            print(f"{len(bad)} images could not be read and have no features", file=sys.stderr)
    return from_main(lambda: 1 if bad else 0)


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
