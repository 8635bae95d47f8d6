"""The frozen encoder's output of every image, kept on disk, so that only the first epoch pays for the encoder.

    cached, bad = cache_features("cache", captioner, [dataset], num_workers=4)
    inputs = plan_inputs(captioner.config, readable(dataset, cached), sources=cached)

One lmdb file per encoder, weights and transform: its name carries a hash of them and its contents repeat them in full,
so that features of other weights, or of pixels prepared in another way, are never taken for these. A record's key is
made of the image's path, size in bytes and time of change: an image that was changed is encoded anew, one that is in
several datasets once. Records are added in whole transactions: a killed run keeps what it had, the next one goes on.

A record is what `CaptionModel.encode` reads, of the whole image: (D,) float32, or the regions (R, D) of a map, float16.
"""

import copy
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from captioning.batches.features import CachedFeatures, pixels_of
from captioning.batches.pixels import encoded, with_files
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.items import Items
from captioning.devices import process, wait_for_all
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.joint import encode_all
from captioning.encoder.transforms import ImageTransform
from captioning.errors import UserError
from captioning.features.lmdb_file import SharedLmdbFile
from captioning.progress import Bar
from data_loader import Loader, LoaderSettings, get_eval_loader
from model import Captioner, as_regions

BATCH_SIZE = 32  # images
FLUSH_BYTES, FLUSH_SECONDS = 2**25, 5.0  # what is encoded but not yet written: lost when the run is killed


class CacheFile(SharedLmdbFile):
    """The lmdb file of what an encoder makes of images that `transform` has prepared."""

    def __init__(self, folder, extractor: ImageEncoder, transform: ImageTransform):
        regions = extractor.grid and extractor.grid[0] * extractor.grid[1]
        pixels = {"size": transform.size, "interpolation": transform.interpolation}
        layout = "regions" if regions else "vector"
        provenance = {"extractor": extractor.name, "weights_sha256": extractor.weights_sha256}
        provenance |= {"transform": {**extractor.transform, **pixels}, "feature_type": "plain", "layout": layout}
        provenance = json.loads(json.dumps(provenance))  # as it will be read
        mark = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:16]
        path = Path(folder) / f"{re.sub('[^A-Za-z0-9_.-]', '-', extractor.name)}-{mark}.lmdb"
        shape, dtype = ((regions, extractor.dim), "<f2") if regions else ((extractor.dim,), "<f4")
        super().__init__(path, shape, np.dtype(dtype), provenance)


def image_keys(items: Iterable[ImageItem]) -> dict[tuple, str]:
    """`pixels_of` each item -> its key in a cache file. Raises UserError where an image is not there."""
    keys: dict[tuple, str] = {}
    stamps: dict[str, str] = {}  # many regions may share an image
    for item in items:
        photos = item.photos or (item,)
        for photo in photos:
            if photo.path not in stamps:
                stamps[photo.path] = stamp(photo.path)
        text = "\n".join(f"{stamps[photo.path]} {photo.box}" for photo in photos)
        keys[pixels_of(item)] = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    return keys


def stamp(path: str) -> str:
    """Changes when the image does; of one within an archive the archive's size and time count."""
    name = place = os.path.abspath(path)
    while True:
        try:
            status = os.stat(place)
            return f"{name} {status.st_size} {status.st_mtime_ns}"
        except NotADirectoryError:
            place = os.path.dirname(place)
        except OSError as error:
            raise UserError(f"--cache_features: cannot read {path}: {error.strerror or error}") from error


def readable(dataset: CaptionDataset, cached: dict[str, CachedFeatures]) -> CaptionDataset:
    """`dataset` without the images that no record could be made of."""
    if not cached:
        return dataset
    return copied(dataset, dataset.items.where(lambda item: all(item in source for source in cached.values())))


def cache_features(
    folder, captioner: Captioner, datasets: Sequence[CaptionDataset], *, num_workers: int | None = None, tell=print
) -> tuple[dict[str, CachedFeatures], list[str]]:
    """What the encoders make of the datasets' images, by the encoder's name; what `folder` lacks of it is made now.

    Processes of torchrun share the work. tell: called with a line of progress. Returns as well a message for each image
    that could not be read, each printed as a warning too; `readable` takes these images out of a dataset. Raises
    UserError where no encoder runs within the model, one is being trained, or no image can be read.
    """
    cached = {}
    extractors = frozen_extractors(captioner)
    for dataset in datasets:
        dataset.require_images()
    whole = copy.copy(datasets[0])
    every = list({pixels_of(item): item for dataset in datasets for item in dataset.items}.values())
    whole.items, bad = with_files(whole, every)
    keys = image_keys(whole.items)
    load = partial(get_eval_loader, settings=LoaderSettings(BATCH_SIZE, num_workers=num_workers))
    load = partial(load, transform=captioner.transform)
    rank, world = process()
    files = {name: CacheFile(folder, extractor, captioner.transform) for name, extractor in extractors.items()}
    todos = {name: without_record(file, whole.items, keys) for name, file in files.items()}
    for name, file in files.items():
        tell(f"{name}: {len(keys) - len(todos[name]):,} of {len(every):,} images are in {file.path}")
    for names in alike(todos, keys):
        parts, todo = [(extractors[name], files[name]) for name in names], todos[names[0]]
        bad += fill(parts, load(copied(whole, todo[rank::world])), keys)
        if world > 1:
            wait_for_all()
            # what is lacking now: images that cannot be read, or another machine's where the folder is not shared
            bad += fill(parts, load(copied(whole, without_record(files[names[0]], todo, keys))), keys)
    for name, file in files.items():
        lost = {pixels_of(item) for item in without_record(file, todos[name], keys)}
        kept = {pixels: key for pixels, key in keys.items() if pixels not in lost}
        if not kept:
            raise UserError(f"--cache_features: none of the {len(every)} images can be read")
        cached[name] = CachedFeatures(name, file.path, kept)
    return cached, list(dict.fromkeys(bad))


def alike(todos: dict[str, Items], keys: dict[tuple, str]) -> list[list[str]]:
    """Names of encoders that lack the same images, and so are run together: those may share layers."""
    groups: dict[tuple, list[str]] = {}
    for name, items in todos.items():
        groups.setdefault(tuple(keys[pixels_of(item)] for item in items), []).append(name)
    return list(groups.values())


def frozen_extractors(captioner: Captioner) -> dict[str, ImageEncoder]:
    """The encoders within the model, by name."""
    pairs = zip(captioner.config.specs, captioner.model.extractors)
    extractors = {spec.name: extractor for spec, extractor in pairs if isinstance(extractor, ImageEncoder)}
    if not extractors:
        raise UserError("--cache_features: no encoder runs within the model, all features come from files already")
    if not all(extractor.frozen for extractor in extractors.values()):
        raise UserError("--cache_features needs a frozen encoder: leave out --finetune_encoder")
    return extractors


def copied(dataset: CaptionDataset, items: Items) -> CaptionDataset:
    """`dataset` with other `items`. Its parts stay whole: rows of a feature file may follow their order."""
    part = copy.copy(dataset)
    part.items = items
    return part


def without_record(file: CacheFile, items: Items, keys: dict[tuple, str]) -> Items:
    """Those of `items` that are there but have no record."""
    lacking = set(file.missing(keys.values()))
    return items.where(lambda item: keys.get(pixels_of(item)) in lacking)


def fill(parts: list[tuple[ImageEncoder, CacheFile]], loader: Loader, keys: dict[tuple, str]) -> list[str]:
    """Encode the images of `loader` into the file of each encoder; a message for each that could not be read."""
    if not loader.items:
        return []
    names = [extractor.name for extractor, _ in parts]
    run = partial(encode_all, dict(zip(names, (extractor for extractor, _ in parts))))
    records: list[dict[str, np.ndarray]] = [{} for _ in parts]
    each = sum(file.bytes for _, file in parts)
    written = time.monotonic()
    bar = Bar(len(loader.items), ", ".join(names), "image")
    try:
        for batch in loader:
            with torch.inference_mode():
                made = encoded(run, batch.pixels.to(parts[0][0].mean.device, non_blocking=True))
            for name, (_, file), kept in zip(names, parts, records):
                rows = as_stored(as_regions(made[name]), file, batch.items)
                kept |= {keys[pixels_of(item)]: row for item, row in zip(batch.items, rows)}
            now = time.monotonic()
            if len(records[0]) * each >= FLUSH_BYTES or now - written > FLUSH_SECONDS:
                add_all(parts, records)
                written = now
            bar.update(len(batch.items))
    finally:
        bar.close()
        loader.close()
        add_all(parts, records)  # Ctrl-C too keeps what was made
    return loader.bad_items


def add_all(parts: list[tuple[ImageEncoder, CacheFile]], records: list[dict[str, np.ndarray]]) -> None:
    """Write the records of each file, and forget them."""
    for (_, file), kept in zip(parts, records):
        if kept:
            file.add(kept)
            kept.clear()


def as_stored(features: torch.Tensor, file: CacheFile, items: list[ImageItem]) -> np.ndarray:
    """Features of a batch in the file's type. Raises UserError naming an image whose features it cannot hold."""
    with np.errstate(over="ignore"):
        rows = features.float().cpu().numpy().astype(file.dtype)
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(1)
    if not finite.all():
        raise UserError(
            f"--cache_features: {file.dtype.name} cannot hold the features of {items[int(finite.argmin())].path}: "
            "use extract_features.py --dtype float32"
        )
    return rows
