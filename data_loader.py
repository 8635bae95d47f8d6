"""Batches made of images, each with its captions.

    dataset = open_dataset("coco:train2014", None)
    loader = get_loader(dataset, vocabulary, features=["resnet152.lmdb"])
    loader.set_position(epoch=1, start_batch=0)
    for batch in loader:
        batch.features[0], batch.captions      # (B, D), (N, T)

An image, or its features, is loaded once for up to `captions_per_image` captions (see batch_sampler). Augmentation is a
function of (seed, epoch, image): workers do not matter, and resuming exactly takes counters only.

Shapes: B images in the batch, N captions (rows), T time steps, D feature size, R image regions.
"""

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from batch_sampler import Group, GroupedBatchSampler, ImageBatchSampler
from caption_datasets import CaptionDataset, CocoDataset, GenericDataset, ImageItem, open_dataset, some, warn
from common import UserError
from feature_readers import FeatureReader
from features import open_features
from paragraph_text import split_sentences
from photo_loading import PhotoLoader, StoryPixels, stacked, with_files
from vocabulary import END, PAD, START

__all__ = ["Batch", "CaptionDataset", "CocoDataset", "FeatureSource", "GenericDataset", "GroupedBatchSampler"]
__all__ += ["ImageItem", "Loader", "get_eval_loader", "get_loader", "open_dataset"]


@dataclass
class Batch:
    """What a loader yields. `captions`, `lengths` and `row_image` are None where captions were not asked for."""

    items: list[ImageItem]  # B images; one with many captions may be there twice
    pixels: torch.Tensor | StoryPixels | None = None  # (B, 3, H, W) uint8
    features: list[torch.Tensor] = field(default_factory=list)  # one per name, (B, D) or (B, R, D), float32 or float16
    persist_features: list[torch.Tensor] = field(default_factory=list)
    captions: torch.Tensor | None = None  # (N, T) int64: <start> words <end>, then <pad>
    lengths: torch.Tensor | None = None  # (N,) int64, counting <start> and <end>
    row_image: torch.Tensor | None = None  # (N,) int64, the row's image in 0..B-1
    # Of paragraphs: (Q,) int64, how many sentences each caption has. A row is a sentence, those of a caption in order.
    sentences: torch.Tensor | None = None
    index: int = 0  # which batch of the epoch this is: a batch of nothing but bad images is passed over
    bad: list[str] = field(default_factory=list)  # why images were dropped from it

    def _each(self, change: Callable) -> "Batch":
        names = ("pixels", "captions", "lengths", "row_image", "sentences")
        changed = {name: change(value) for name in names if (value := getattr(self, name)) is not None}
        lists = {name: [change(value) for value in getattr(self, name)] for name in ("features", "persist_features")}
        return replace(self, **changed, **lists)

    def to(self, device, non_blocking: bool = True) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":  # called by DataLoader
        return self._each(lambda tensor: tensor.pin_memory())


class _Numbered:
    """Adds the epoch and the batch's number to what a sampler yields, and so carries them to the workers."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[int, int, list[Group]]]:
        epoch = self.sampler.epoch
        for number, groups in enumerate(self.sampler, self.sampler.start_batch):
            yield epoch, number, groups

    def __len__(self) -> int:
        return len(self.sampler)


# ---------------------------------------------------------------- what a batch is made from


def feature_path(part: CaptionDataset, name: str) -> str:
    """Where the feature file `name` of `part` should lie: without a features_path, in the working directory."""
    path = os.path.expanduser(name)
    return path if os.path.isabs(path) or not part.features_path else os.path.join(part.features_path, path)


class FeatureSource:
    """One external name of --features: the feature file of each part of the dataset, looked up in its features_path.

    shape, dtype: of a record; maker: what made the file, or None. Raises UserError where a file is missing or the
    parts' files do not fit together.
    """

    def __init__(self, dataset: CaptionDataset, name: str):
        self.name = name
        self.readers: list[FeatureReader] = []
        self.absent: set[tuple[int, str]] = set()  # (part, key) of photos of stories that have no record
        for part in dataset.parts:
            path = feature_path(part, name)
            try:
                reader = open_features(path, [item.key for item in part.photos()], part.labels)
            except UserError as error:
                lost = not (part.features_path or os.path.exists(path))
                hint = f" (set features_path for [{part.name}], or give the whole path)" if lost else ""
                raise UserError(f"--dataset {part.name}: {error}{hint}") from None
            self.readers.append(reader)
        first = self.readers[0]
        self.shape, self.maker = first.shape, first.maker
        self.dtype = np.result_type(*(reader.dtype for reader in self.readers))
        if self.dtype not in (np.float16, np.float32):
            self.dtype = np.dtype(np.float32)
        for reader in self.readers[1:]:
            if reader.shape != first.shape:
                raise UserError(f"{first.path} has features of shape {first.shape}, {reader.path} of {reader.shape}")
            if reader.maker and first.maker and reader.maker != first.maker:
                raise UserError(f"{first.path} and {reader.path} were made by different extractors")

    def check(self, items: Iterable[ImageItem]) -> None:
        """Raises UserError naming a key and the file where an item has no record, or a story none for any photo.

        A story's photos without a record are left out of its mean, and counted in a warning.
        """
        items = list(items)
        for part, reader in enumerate(self.readers):
            own = [item for item in items if item.part == part]
            photos = [photo for item in own for photo in item.photos or (item,)]
            picked = reader.pick([alternatives(photo) for photo in photos])
            absent = set(reader.missing(picked))
            lacking = {photo.key for photo, key in zip(photos, picked) if key in absent}
            if not lacking:
                continue
            lost = [item for item in own if all(photo.key in lacking for photo in item.photos or (item,))]
            if lost:
                more = f" (and {len(lost) - 1} other images of the dataset)" if len(lost) > 1 else ""
                first = lost[0].photos[0] if lost[0].photos else lost[0]
                raise UserError(f"{reader.no_record(first.key)}{more}")
            self.absent |= {(part, key) for key in lacking}
            what = f"{len(lacking)} photos of stories, which go on without them"
            warn(f"feature file {reader.path} has no record for {what}: {some(sorted(lacking))}")

    def get(self, items: Sequence[ImageItem]) -> torch.Tensor:
        """(B, D), or (B, R, D) where a record is a map (D, h, w); R = h * w. float16 stays so.

        Of a story the mean over its photos.
        """
        if any(item.photos for item in items):
            several = [
                [photo for photo in item.photos or (item,) if (item.part, photo.key) not in self.absent]
                for item in items
            ]
            records = self._records([photo for photos in several for photo in photos])
            ends = np.cumsum([len(photos) for photos in several])
            means = [rows.mean(0, np.float32) for rows in np.split(records, ends[:-1])]
            out = np.stack(means).astype(self.dtype, copy=False)
        else:
            out = self._records(items)
        if out.ndim == 4:  # by numpy: torch would start threads of its own for it in the thread that makes batches
            out = np.ascontiguousarray(out.reshape(*out.shape[:2], -1).transpose(0, 2, 1))
        return torch.from_numpy(out)

    def _records(self, items: Sequence[ImageItem]) -> np.ndarray:
        """(len(items), *shape)"""
        if len(self.readers) == 1 or len({item.part for item in items}) == 1:
            out = self._read(self.readers[items[0].part], items)
        else:
            out = np.empty((len(items), *self.shape), self.dtype)
            for part, reader in enumerate(self.readers):
                rows = [row for row, item in enumerate(items) if item.part == part]
                if rows:
                    out[rows] = self._read(reader, [items[row] for row in rows])
        return out.astype(self.dtype, copy=False)

    @staticmethod
    def _read(reader: FeatureReader, items: Sequence[ImageItem]) -> np.ndarray:
        return reader.get_many(reader.pick([alternatives(item) for item in items]))


def alternatives(item: ImageItem) -> str | tuple[str, ...]:
    """The key of an item in feature files, or the keys to be tried in turn."""
    return (item.key, *item.other_keys) if item.other_keys else item.key


class _Captions:
    """The captions of all items as ids in one flat array, <start> and <end> included.

    max_sentences: captions are paragraphs, each sentence a row of its own; what goes beyond them is left out.
    """

    def __init__(self, items: Sequence[ImageItem], vocabulary, max_tokens: int | None, max_sentences: int | None):
        encode = vocabulary.encode
        flat, lengths, sentences = array("i"), [], []
        for item in items:
            for caption in item.captions:
                parts = [caption]
                if max_sentences is not None:
                    parts = split_sentences(caption)[:max_sentences] or parts
                sentences.append(len(parts))
                for part in parts:
                    ids = encode(part)
                    row = [START, *(ids if max_tokens is None else ids[:max_tokens]), END]
                    flat.extend(row)
                    lengths.append(len(row))
        self.paragraphs = max_sentences is not None
        self.sentences = np.array(sentences, np.int64)  # of each caption
        self.first_row = np.cumsum(self.sentences) - self.sentences
        self.flat = np.frombuffer(flat, np.int32)
        self.lengths = np.array(lengths, np.int64)
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.first = np.cumsum([0, *(len(item.captions) for item in items)])  # of each item, its first caption

    def rows(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """captions (N, T), lengths (N,), row_image (N,), and of paragraphs sentences (Q,), as a Batch has them."""
        rows = np.array([self.first[item] + c for item, captions in groups for c in captions], np.int64)
        row_image = np.repeat(np.arange(len(groups)), [len(captions) for _, captions in groups])
        sentences = {}
        if self.paragraphs:
            counts = self.sentences[rows]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows, row_image = np.repeat(self.first_row[rows], counts) + within, np.repeat(row_image, counts)
            sentences["sentences"] = torch.from_numpy(counts)
        lengths = self.lengths[rows]
        steps = np.arange(lengths.max(initial=0))
        inside = steps < lengths[:, None]  # (N, T)
        ids = np.full(inside.shape, PAD, np.int64)
        ids[inside] = self.flat[(self.begins[rows][:, None] + steps)[inside]]
        arrays = {"captions": ids, "lengths": lengths, "row_image": row_image}
        return {name: torch.from_numpy(values) for name, values in arrays.items()} | sentences


class _Batches:
    """(epoch, number, groups) -> Batch, as DataLoader asks a dataset; runs in the workers.

    A UserError comes back as its message: raised in a worker it would arrive wrapped in the worker's traceback.
    """

    def __init__(self, items, captions, features, persist_features, transform, seed):
        self.items: list[ImageItem] = items
        self.captions: _Captions | None = captions
        self.features: list[FeatureSource] = features
        self.persist_features: list[FeatureSource] = persist_features
        self.transform = transform
        self.photos = PhotoLoader(transform)
        self.seed = seed  # None: no augmentation

    def __getitem__(self, where: tuple[int, int, list[Group]]) -> Batch | str:
        try:
            return self._batch(*where)
        except UserError as error:
            return str(error)

    def _batch(self, epoch: int, number: int, groups: list[Group]) -> Batch:
        batch = Batch([], index=number)
        if self.transform is not None:
            groups = self._load_pixels(batch, epoch, groups)
        batch.items = [self.items[index] for index, _ in groups]
        if groups:
            batch.features = [source.get(batch.items) for source in self.features]
            batch.persist_features = [source.get(batch.items) for source in self.persist_features]
            if self.captions is not None:
                batch = replace(batch, **self.captions.rows(groups))
        return batch

    def _load_pixels(self, batch: Batch, epoch: int, groups: list[Group]) -> list[Group]:
        """Fill `batch.pixels` and `batch.bad`; return the groups whose image is good."""
        good, pixels = [], []
        for group in groups:
            loaded = self.photos.load(self.items[group[0]], partial(self._seed_of, epoch, group[0]), batch.bad)
            if loaded is not None:
                pixels.append(loaded)
                good.append(group)
        if pixels:
            batch.pixels = stacked(pixels)
        return good

    def _seed_of(self, epoch: int, index: int, photo: int) -> int | None:
        """Of the augmentation of a photo of item `index`; None where there is none."""
        if self.seed is None:
            return None
        sequence = np.random.SeedSequence([self.seed % 2**32, epoch, index, 2, *([photo] if photo else [])])
        return int(sequence.generate_state(1)[0])


# ---------------------------------------------------------------- loaders


class Loader:
    """Iterates over the Batches of one epoch, from the position set; each iteration repeats it.

    dataset: what it loads from; items: the images it uses; features, persist_features: their FeatureSources;
    bad_items: a message for every image that was dropped, missing files included; each is printed once.
    A batch that lost all of its images is passed over. With several processes that would put them out of step: check
    the images first. Raises UserError while iterating where a feature file turns out to be damaged.
    """

    def __init__(self, dataset: CaptionDataset, batches: _Batches, sampler, num_workers: int, bad_items: list[str]):
        self.dataset, self.items = dataset, batches.items
        self.features, self.persist_features = batches.features, batches.persist_features
        self.sampler = sampler
        self.bad_items = bad_items
        self.num_workers = num_workers
        self._data = DataLoader(
            batches,
            batch_size=None,  # an index is a whole batch
            sampler=_Numbered(sampler),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
        )

    @property
    def num_captions(self) -> int:
        return sum(len(item.captions) for item in self.items)

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """Iterate over `epoch` from batch `start_batch` on: the same batches as the tail of the whole epoch."""
        self.sampler.set_position(epoch, start_batch)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._data) if self.num_workers else _ahead(iter(self._data))
        with contextlib.closing(batches) if hasattr(batches, "close") else contextlib.nullcontext():
            for batch in batches:
                if isinstance(batch, str):
                    raise UserError(batch)
                for message in batch.bad:
                    if message not in self.bad_items:
                        self.bad_items.append(message)
                        warn(message)
                if batch.items:
                    yield batch

    def close(self) -> None:
        """End the workers."""
        iterator, self._data._iterator = self._data._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()


def _as_it_is(batch):
    return batch


def _ahead(batches: Iterator) -> Iterator:
    """`batches`, the next being made in a thread while the caller works on one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def get_loader(
    dataset: CaptionDataset,
    vocabulary,
    *,
    batch_size: int = 128,
    captions_per_image: int = 5,
    features: Sequence[str] = (),
    persist_features: Sequence[str] = (),
    transform: Callable | None = None,
    seed: int = 42,
    num_workers: int | None = None,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Batches for training.

    batch_size: captions; features, persist_features: external names, or opened sources; transform:
    (PIL image, seed) -> uint8 (3, H, W), None for no pixels (an attribute `size_hint` allows reduced-scale decoding);
    num_workers: processes, None for 0 without pixels and for the machine's cores with them; max_tokens: words kept of a
    caption; max_sentences: captions are paragraphs, a row is a sentence, and so many are kept of each (batch_size still
    counts captions).
    Raises UserError where there are no captions, an image lacks a feature, or no image file is there.
    """
    dataset.require_captions()
    items = [item for item in dataset.items if item.captions]
    items, bad = with_files(dataset, items) if transform is not None else (items, [])
    counts = [len(item.captions) for item in items]
    sampler = GroupedBatchSampler(counts, batch_size, captions_per_image, seed, shuffle, rank, world_size)
    captions = _Captions(items, vocabulary, max_tokens, max_sentences)
    batches = _Batches(items, captions, *_sources(dataset, items, features, persist_features), transform, seed)
    return Loader(dataset, batches, sampler, _workers(num_workers, transform), bad)


def get_eval_loader(
    dataset: CaptionDataset,
    vocabulary=None,
    *,
    batch_size: int = 64,
    with_captions: bool = False,
    features: Sequence[str] = (),
    persist_features: Sequence[str] = (),
    transform: Callable | None = None,
    num_workers: int | None = None,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """All images in order, for validation and inference; arguments as get_loader's, but batch_size counts images.

    With `with_captions` the images that have captions, with all of them as rows. `transform` is given no seed.
    """
    items = dataset.items
    if with_captions:
        dataset.require_captions("validation")
        items = [item for item in items if item.captions]
    items, bad = with_files(dataset, items) if transform is not None else (items, [])
    counts = [len(item.captions) if with_captions else 0 for item in items]
    sampler = ImageBatchSampler(counts, batch_size, rank, world_size)
    captions = _Captions(items, vocabulary, max_tokens, max_sentences) if with_captions else None
    batches = _Batches(items, captions, *_sources(dataset, items, features, persist_features), transform, None)
    return Loader(dataset, batches, sampler, _workers(num_workers, transform), bad)


def _workers(num_workers: int | None, transform) -> int:
    if num_workers is not None:
        return num_workers
    if transform is None:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sources(dataset: CaptionDataset, items: list[ImageItem], *lists: Sequence[str]) -> list[list[FeatureSource]]:
    """The opened feature files, every item's key checked now: training must not die of one in the night."""
    opened: dict[str, FeatureSource] = {}
    for name in dict.fromkeys(name for names in lists for name in names):
        opened[name] = FeatureSource(dataset, name) if isinstance(name, str) else name
        opened[name].check(items)
    return [[opened[name] for name in names] for names in lists]
