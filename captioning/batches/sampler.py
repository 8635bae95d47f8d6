"""Which images and captions make a batch: all of it a function of (seed, epoch), so that a position is two counters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from captioning.errors import UserError

Group = tuple[int, list[int]]  # the index of an item, and which of its captions


@dataclass(frozen=True)
class LoaderSettings:
    """How a dataset is divided into batches, and by how many processes they are made.

    batch_size: captions of a batch in training, images of a batch in evaluation.
    captions_per_image: the most captions for which an image is loaded once, in training.
    seed: of the order of images and of their augmentation, in training.
    num_workers: processes that make batches; None: 0 without pixels, this process' cores with them.
    max_sentences: captions are paragraphs, a row is a sentence, and so many are kept of each; batch_size still counts
    captions. None: a row is a caption.
    ids_folder: where the word ids of many captions are kept for the next run; None: nowhere.
    shuffle_buffer: images of tar shards out of which the next one is drawn, in training.
    mix: how often each part of the dataset comes in an epoch of training, such as (1, 3); (): each once.
    rank, world_size: which process of torchrun this is, of how many; each makes its share of the batches.
    """

    batch_size: int = 128
    captions_per_image: int = 5
    seed: int = 42
    num_workers: int | None = None
    max_sentences: int | None = None
    ids_folder: str | None = None
    shuffle_buffer: int = 5000
    mix: tuple[float, ...] = ()
    rank: int = 0
    world_size: int = 1


class GroupedBatchSampler:
    """Batches of groups; a group is an image with up to C of its captions. Each caption comes once an epoch.

    An image with more than C captions makes several groups, divided anew at random each epoch; one without any makes
    none. A batch has max(2, batch_size // C) groups; a last batch of a single group is merged into the one before.
    With `mix` the groups of part p of the dataset come mix[p] times an epoch: of 2.5 all of them twice, and half of
    them, drawn anew each epoch, once more.
    With `world_size` processes each takes every world_size-th batch, all equally many (a few come twice then).
    """

    def __init__(self, caption_counts: Sequence[int], settings: LoaderSettings, parts: Sequence[int] = ()):
        """caption_counts: of each item; parts: the part of the dataset that each lies in, where there is a `mix`."""
        self.size = settings.captions_per_image
        if self.size < 1:
            raise UserError(f"--captions_per_image {self.size}: must be at least 1")
        self.counts = np.asarray(caption_counts, np.int64)
        self.images = max(2, settings.batch_size // self.size)
        self.seed = settings.seed
        self.rank, self.world_size = settings.rank, settings.world_size
        self.epoch = self.start_batch = 0
        self.mix, self.parts = settings.mix, np.asarray(parts, np.int64)
        of_items = -(-self.counts // self.size)
        self.num_groups = int(of_items.sum())
        if self.mix:
            assert self.parts.max(initial=0) < len(self.mix)
            self.num_groups = sum(
                round(times * int(of_items[self.parts == part].sum())) for part, times in enumerate(self.mix)
            )
        self.num_batches = -(-self.num_groups // self.images)
        if self.num_batches > 1 and self.num_groups % self.images == 1:
            self.num_batches -= 1

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration is over `epoch` from its batch `start_batch` (of this process) on."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of an epoch, of this process, wherever the position."""
        return -(-self.num_batches // self.world_size)

    def __iter__(self) -> Iterator[list[Group]]:
        items, captions, bounds = self._groups()
        for groups in self._batches(items):
            yield [(int(items[g]), captions[bounds[g] : bounds[g + 1]].tolist()) for g in groups]

    def _batches(self, items: np.ndarray) -> Iterator[np.ndarray]:
        """The numbers of the groups of each batch from `start_batch` on. items: that of each group (G,)."""
        order = self._random(1).permutation(self.num_groups)
        if self.mix:
            order = self._mixed(items)[order]
        for step in range(self.start_batch, len(self)):
            number = (self.rank + step * self.world_size) % self.num_batches
            last = number == self.num_batches - 1
            yield order[number * self.images : None if last else (number + 1) * self.images]

    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Item of each group (G,), all captions in the order of groups, and where each group begins in it (G + 1,)."""
        total = int(self.counts.sum())
        first = np.cumsum(self.counts) - self.counts
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        place = np.arange(total) - first[owner]  # 0..n-1 within each image
        captions = place[np.lexsort((self._random(0).random(total), owner))]  # by image, and at random within it
        begins = np.flatnonzero(place % self.size == 0)
        return owner[begins], captions, np.append(begins, total)

    def _mixed(self, items: np.ndarray) -> np.ndarray:
        """The numbers of the groups of `items`, each as often as it comes in this epoch (num_groups,)."""
        parts, draw, mixed = self.parts[items], self._random(3), []
        for part, times in enumerate(self.mix):
            groups = np.flatnonzero(parts == part)
            rounds, rest = divmod(round(times * len(groups)), max(len(groups), 1))
            mixed += [groups] * rounds + [draw.permutation(groups)[:rest]]
        return np.concatenate(mixed)

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**32, self.epoch, stream])


class ImageBatchSampler:
    """All given items in order, `batch_size` images at a time, each with all of its captions."""

    def __init__(self, caption_counts: Sequence[int], settings: LoaderSettings):
        self.counts, self.size = np.asarray(caption_counts, np.int64), settings.batch_size
        self.firsts = range(0, len(self.counts), self.size)[settings.rank :: settings.world_size]
        self.epoch = self.start_batch = 0

    set_position = GroupedBatchSampler.set_position

    def __len__(self) -> int:
        return len(self.firsts)

    def __iter__(self) -> Iterator[list[Group]]:
        for first in self.firsts[self.start_batch :]:
            counts = self.counts[first : first + self.size].tolist()
            yield [(first + place, list(range(count))) for place, count in enumerate(counts)]
