"""Batches made of images, each with its captions.

    dataset = open_dataset("coco:train2014")
    inputs = plan_inputs(config, dataset)      # where each input of a model comes from
    loader = get_loader(dataset, vocabulary, inputs, LoaderSettings(batch_size=128))
    loader.set_position(epoch=1, start_batch=0)
    for batch in loader:
        batch.inputs[0], batch.captions        # (B, D), (N, T)

An image, or its features, is loaded once for up to `captions_per_image` captions. Augmentation is a function of (seed,
epoch, image): workers do not matter, and resuming exactly takes counters only.

Shapes: B images in the batch, N captions (rows), T time steps, D feature size, R image regions.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from captioning.batches.captions import CaptionIds
from captioning.batches.ids_file import caption_ids
from captioning.batches.inputs import Input
from captioning.batches.pixels import PhotoLoader, StoryPixels, stacked, with_files
from captioning.batches.sampler import Group, GroupedBatchSampler, ImageBatchSampler, LoaderSettings
from captioning.batches.shard_sampler import ShardBatchSampler, shard_numbers
from captioning.cores import own_cores
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.factory import open_dataset
from captioning.datasets.items import Items
from captioning.errors import WORKER_DIED, UserError, warn
from captioning.fast.memory import return_free_memory
from captioning.signals import serve

__all__ = ["Batch", "Loader", "LoaderSettings", "get_eval_loader", "get_loader", "open_dataset"]


@dataclass
class Batch:
    """What a loader yields. `captions`, `lengths` and `row_image` are None where captions were not asked for."""

    items: list[ImageItem]  # B images; one with many captions may be there twice
    pixels: torch.Tensor | StoryPixels | None = None  # (B, 3, H, W) uint8
    # one for each Input: (B, D) or (B, R, D), float32 or float16; None where an encoder makes it from the pixels
    inputs: list[torch.Tensor | None] = field(default_factory=list)
    captions: torch.Tensor | None = None  # (N, T) int64: <start> words <end>, then <pad>
    lengths: torch.Tensor | None = None  # (N,) int64, counting <start> and <end>
    row_image: torch.Tensor | None = None  # (N,) int64, the row's image in 0..B-1
    # Of paragraphs: (Q,) int64, how many sentences each caption has. A row is a sentence, those of a caption in order.
    sentences: torch.Tensor | None = None
    index: int = 0  # which batch of the epoch this is: a batch of nothing but bad images is passed over
    bad: list[str] = field(default_factory=list)  # why images were dropped from it
    # False: a stand-in, blank pixels for a batch of nothing but bad images, so that the processes of a run stay in step
    counted: bool = True

    def share_memory(self) -> None:
        """Put the tensors where other processes can read them. Raises UserError where there is no room.

        torch would do so in a thread that sends the batch, and whose errors reach nobody: the batch would never come.
        """
        story = isinstance(self.pixels, StoryPixels)
        pixels = [self.pixels.photos, self.pixels.owner] if story else [self.pixels]
        tensors = *pixels, *self.inputs, self.captions, self.lengths, self.row_image, self.sentences
        try:
            for tensor in tensors:
                if tensor is not None:
                    tensor.share_memory_()
        except RuntimeError as error:
            advice = "use --num_workers 0, or in Docker a larger --shm-size"
            raise UserError(f"a batch does not fit in the shared memory of processes, /dev/shm: {advice}") from error

    def pin_memory(self) -> "Batch":  # called by DataLoader
        names = ("pixels", "captions", "lengths", "row_image", "sentences")
        pinned = {name: value.pin_memory() for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **pinned, inputs=[None if one is None else one.pin_memory() for one in self.inputs])


class _Numbered:
    """Adds the epoch and the batch's number to what a sampler yields, and so carries them to the workers."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[int, int, list[Group]]]:
        epoch = self.sampler.epoch
        for number, groups in enumerate(self.sampler, self.sampler.start_batch):
            yield epoch, number, groups


@dataclass
class _Batches:
    """(epoch, number, groups) -> Batch, as DataLoader asks a dataset; runs in the workers.

    A UserError comes back as its message: raised in a worker it would arrive wrapped in the worker's traceback.
    """

    items: Items
    captions: CaptionIds | None
    inputs: list[Input]
    transform: Callable | None
    seed: int | None  # None: no augmentation
    stand_ins: bool = False  # whether a batch of nothing but bad images is yielded all the same

    def __post_init__(self):
        self.photos = PhotoLoader(self.transform)

    def __getitem__(self, where: tuple[int, int, list[Group]]) -> Batch | str:
        try:
            batch = self._batch(*where)
            if get_worker_info() is not None:
                batch.share_memory()
            return batch
        except UserError as error:
            return str(error)

    def _batch(self, epoch: int, number: int, groups: list[Group]) -> Batch:
        batch = Batch([], index=number)
        if self.transform is not None:
            groups = self._load_pixels(batch, epoch, groups) or self._stand_in(batch, groups)
        batch.items = [self.items[index] for index, _ in groups]
        if groups:
            rows = {id(source): source.get(batch.items) for source in opened(self.inputs)}
            batch.inputs = [rows.get(id(one.source)) for one in self.inputs]
            if self.captions is not None:
                batch = replace(batch, **self.captions.rows(groups))
        return batch

    def _load_pixels(self, batch: Batch, epoch: int, groups: list[Group]) -> list[Group]:
        """Fill `batch.pixels` and `batch.bad`; return the groups whose image is good."""
        load, seed = self.photos.load, self._seed_of
        pixels = [load(self.items[index], partial(seed, epoch, index), batch.bad) for index, _ in groups]
        good = [one for one in pixels if one is not None]
        batch.pixels = stacked(good) if good else None
        return [group for group, one in zip(groups, pixels) if one is not None]

    def _stand_in(self, batch: Batch, groups: list[Group]) -> list[Group]:
        """Fill `batch` with blank pixels for the first of `groups`, where stand-ins are wanted; return that group."""
        if not self.stand_ins:
            return []
        batch.pixels, batch.counted = stacked([self.photos.blank(self.items[groups[0][0]])]), False
        return groups[:1]

    def _seed_of(self, epoch: int, index: int, photo: int) -> int | None:
        """Of the augmentation of a photo of item `index`; None where there is none."""
        if self.seed is None:
            return None
        sequence = np.random.SeedSequence([self.seed % 2**32, epoch, index, 2, *([photo] if photo else [])])
        return int(sequence.generate_state(1)[0])


class Loader:
    """Iterates over the Batches of one epoch, from the position set; each iteration repeats it.

    items: the images it uses; shards: the number of each item's tar shard (N,) where the order of training follows
    them, else None; unknown_share: of the words of their captions that are <unk>; inputs: where a model's inputs come
    from; bad_items: a message for every image that was dropped, missing files included, and for damage to tar shards;
    each is printed once.
    A batch that lost all of its images is passed over; in training with several processes a stand-in takes its place.
    Raises UserError while iterating where a feature file turns out to be damaged.
    """

    def __init__(self, dataset: CaptionDataset, vocabulary, inputs, settings, transform, training: bool):
        items = dataset.items
        if vocabulary is not None:
            dataset.require_captions("training" if training else "validation")
            items = items.captioned()
        if inputs and not any(one.from_pixels for one in inputs):
            transform = None
        if settings.mix and len(settings.mix) != len(dataset.parts):
            mix, count = ",".join(f"{times:g}" for times in settings.mix), len(dataset.parts)
            raise UserError(f"--mix {mix}: {dataset.name} has {count} parts, give a number for each of them")
        items, self.bad_items = with_files(dataset, items) if transform is not None else (items, [])
        self.bad_items += dataset.damaged
        for source in opened(inputs):  # of all items now: training must not die of a missing record in the night
            source.check(items)
        self.items, self.inputs = items, list(inputs)
        processes = 1 if settings.num_workers == 0 else own_cores()
        captions = None if vocabulary is None else caption_ids(items, vocabulary, settings, processes)
        self.unknown_share = 0.0 if captions is None else captions.unknown_share  # of the words of the captions
        counts = [0] * len(items) if captions is None else items.caption_counts()
        sharded = training and transform is not None and any(part.in_shards for part in dataset.parts)
        self.shards = shard_numbers(items.paths()) if sharded else None
        if sharded:
            self.sampler = ShardBatchSampler(counts, settings, items.parts(), self.shards)
        elif training:
            self.sampler = GroupedBatchSampler(counts, settings, items.parts())
        else:
            self.sampler = ImageBatchSampler(counts, settings)
        workers = settings.num_workers
        if workers is None:
            workers = 0 if transform is None else own_cores()
        seed, stand_ins = (settings.seed, settings.world_size > 1) if training else (None, False)
        self._data = DataLoader(
            _Batches(items, captions, self.inputs, transform, seed, stand_ins),
            batch_size=None,  # an index is a whole batch
            sampler=_Numbered(self.sampler),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=partial(begin_worker, os.getpid()),
        )

    @property
    def num_captions(self) -> int:
        return self.items.num_captions

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """Iterate over `epoch` from batch `start_batch` on: the same batches as the tail of the whole epoch."""
        self.sampler.set_position(epoch, start_batch)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self._data.num_workers and self._data._iterator is None:
            return_free_memory()
        batches = iter(self._data) if self._data.num_workers else _ahead(iter(self._data))
        with contextlib.closing(batches) if hasattr(batches, "close") else contextlib.nullcontext():
            for batch in self._received(batches):
                if isinstance(batch, str):
                    raise UserError(batch)
                for message in batch.bad:
                    if message not in self.bad_items:
                        self.bad_items.append(message)
                        warn(message)
                if batch.items:
                    yield batch

    def _received(self, batches: Iterator) -> Iterator:
        """`batches`. Raises UserError where the process that made one is not there any more to hand it over."""
        try:
            yield from batches
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if not self._data.num_workers:
                raise
            raise UserError(WORKER_DIED) from error

    def close(self) -> None:
        """End the workers."""
        iterator, self._data._iterator = self._data._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()


def begin_worker(parent: int, number: int) -> None:
    """What the `number`-th process of a Loader in process `parent` does first."""
    serve(parent)
    gc.freeze()  # the garbage collector writes to each object it looks at: a page that was shared is copied then


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
    inputs: Sequence[Input] = (),
    settings: LoaderSettings | None = None,
    transform: Callable | None = None,
) -> Loader:
    """Batches for training, of the images that have captions.

    inputs: plan_inputs() of the model, and of others that read the same batches. transform: (PIL image, seed) -> uint8
    (3, H, W), an attribute `size_hint` allows reduced-scale decoding; it is used where one of `inputs` is made from
    pixels, or where there are none. Raises UserError where there are no captions, an image lacks a feature, or no image
    file is there.
    """
    return Loader(dataset, vocabulary, inputs, settings or LoaderSettings(), transform, True)


def get_eval_loader(
    dataset: CaptionDataset,
    inputs: Sequence[Input] = (),
    settings: LoaderSettings | None = None,
    transform: Callable | None = None,
    vocabulary=None,
) -> Loader:
    """All images in order, for validation and inference; arguments as get_loader's.

    With a `vocabulary` the images that have captions, with all of them as rows. `transform` is given no seed.
    """
    return Loader(dataset, vocabulary, inputs, settings or LoaderSettings(batch_size=64), transform, False)


def opened(inputs: Iterable[Input]) -> list:
    """The feature files and caches among the sources of `inputs`, each once: several inputs may share one."""
    return list({id(one.source): one.source for one in inputs if not one.from_pixels}.values())
