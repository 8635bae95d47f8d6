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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from captioning.batches.captions import CaptionIds
from captioning.batches.inputs import Input
from captioning.batches.pixels import PhotoLoader, StoryPixels, stacked, with_files
from captioning.batches.sampler import Group, GroupedBatchSampler, ImageBatchSampler, LoaderSettings
from captioning.cores import core_count
from captioning.datasets.base import CaptionDataset, ImageItem, warn
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError

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

    def _each(self, change: Callable) -> "Batch":
        names = ("pixels", "captions", "lengths", "row_image", "sentences")
        changed = {name: change(value) for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **changed, inputs=[None if one is None else change(one) for one in self.inputs])

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


class _Batches:
    """(epoch, number, groups) -> Batch, as DataLoader asks a dataset; runs in the workers.

    A UserError comes back as its message: raised in a worker it would arrive wrapped in the worker's traceback.
    """

    def __init__(self, items, captions, inputs, transform, seed):
        self.items: list[ImageItem] = items
        self.captions: CaptionIds | None = captions
        self.inputs: list[Input] = inputs
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
            rows = {id(source): source.get(batch.items) for source in opened(self.inputs)}
            batch.inputs = [rows.get(id(one.source)) for one in self.inputs]
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


class Loader:
    """Iterates over the Batches of one epoch, from the position set; each iteration repeats it.

    dataset: what it loads from; items: the images it uses; inputs: where a model's inputs come from; bad_items: a
    message for every image that was dropped, missing files included; each is printed once.
    A batch that lost all of its images is passed over. With several processes that would put them out of step: check
    the images first. Raises UserError while iterating where a feature file turns out to be damaged.
    """

    def __init__(self, dataset: CaptionDataset, batches: _Batches, sampler, num_workers: int, bad_items: list[str]):
        self.dataset, self.items = dataset, batches.items
        self.inputs = batches.inputs
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
    settings = settings or LoaderSettings()
    dataset.require_captions()
    items = [item for item in dataset.items if item.captions]
    transform, items, bad = _found(dataset, items, inputs, transform)
    sampler = GroupedBatchSampler([len(item.captions) for item in items], settings)
    captions = CaptionIds(items, vocabulary, settings.max_sentences)
    batches = _Batches(items, captions, list(inputs), transform, settings.seed)
    return Loader(dataset, batches, sampler, _workers(settings, transform), bad)


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
    settings = settings or LoaderSettings(batch_size=64)
    items = dataset.items
    if vocabulary is not None:
        dataset.require_captions("validation")
        items = [item for item in items if item.captions]
    transform, items, bad = _found(dataset, items, inputs, transform)
    captions = None if vocabulary is None else CaptionIds(items, vocabulary, settings.max_sentences)
    sampler = ImageBatchSampler([0 if captions is None else len(item.captions) for item in items], settings)
    batches = _Batches(items, captions, list(inputs), transform, None)
    return Loader(dataset, batches, sampler, _workers(settings, transform), bad)


def opened(inputs: Iterable[Input]) -> list:
    """The feature files and caches among the sources of `inputs`, each once: several inputs may share one."""
    return list({id(one.source): one.source for one in inputs if not one.from_pixels}.values())


def _found(dataset: CaptionDataset, items: list[ImageItem], inputs: Sequence[Input], transform) -> tuple:
    """The transform if pixels are needed, the items whose files are there, and a message for each that is not.

    The records of all items are looked up now: training must not die of one in the night.
    """
    if inputs and not any(one.from_pixels for one in inputs):
        transform = None
    items, bad = with_files(dataset, items) if transform is not None else (items, [])
    for source in opened(inputs):
        source.check(items)
    return transform, items, bad


def _workers(settings: LoaderSettings, transform) -> int:
    if settings.num_workers is not None:
        return settings.num_workers
    if transform is None:
        return 0
    return core_count()
