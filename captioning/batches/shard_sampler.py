"""Batches of images that lie in tar shards: a few shards at a time, in an order that is a function of (seed, epoch)."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from captioning.batches.sampler import GroupedBatchSampler, LoaderSettings
from captioning.errors import UserError
from captioning.images.tar_file import split_place


class ShardBatchSampler(GroupedBatchSampler):
    """Batches of groups as GroupedBatchSampler makes them, but of images from a few shards at a time.

    The shards come in a random order, another one in each epoch. Their groups pass through a buffer of `shuffle_buffer`
    groups, and the next group is drawn out of it, as in webdataset's shuffle. Of `world_size` processes each has an
    equal part of the groups in the order of shards: it reads shards of its own, and shares one or two with others. All
    make equally many batches, whose sizes differ by one group at most, and no group comes twice.
    """

    def __init__(
        self, caption_counts: Sequence[int], settings: LoaderSettings, parts: Sequence[int], shards: np.ndarray
    ):
        """shards: the number of each item's shard (N,). Raises UserError where there are more processes than groups."""
        super().__init__(caption_counts, settings, parts)
        self.shards, self.buffer = shards, settings.shuffle_buffer
        ends = [self.num_groups * number // self.world_size for number in range(self.world_size + 1)]
        sizes = np.diff(ends)
        if sizes.min() < 1:
            raise UserError(f"{self.num_groups} images are too few for {self.world_size} processes: start fewer")
        self.share = slice(ends[self.rank], ends[self.rank + 1])
        self.num_batches = -(-int(sizes.max()) // self.images)  # of each process
        if self.num_batches > 1 and sizes.min() - self.images * (self.num_batches - 1) < 2:
            self.num_batches -= 1

    def __len__(self) -> int:
        return self.num_batches

    def _batches(self, items: np.ndarray) -> Iterator[np.ndarray]:
        groups = self._mixed(items) if self.mix else np.arange(self.num_groups)
        places = self._random(4).permutation(int(self.shards.max()) + 1)[self.shards[items[groups]]]
        own = groups[np.argsort(places, kind="stable")][self.share]
        order = through_buffer(own, self.buffer, self._random(5 + self.rank))
        for number in range(self.start_batch, self.num_batches):
            last = number == self.num_batches - 1
            yield order[number * self.images : None if last else (number + 1) * self.images]


def through_buffer(values: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """The values (G,) as they leave a buffer of `size`: each goes where one that was drawn at random has left."""
    buffer, picks = values[:size].tolist(), random.integers(size, size=max(0, len(values) - size)).tolist()
    left = []
    for pick, value in zip(picks, values[size:].tolist()):
        left.append(buffer[pick])
        buffer[pick] = value
    return np.array(left + random.permutation(buffer).tolist(), values.dtype)


def shard_numbers(paths: Iterable[str]) -> np.ndarray:
    """A number for the tar file of each path (N,); each image outside of tar files has a number of its own."""
    known: dict[str, int] = {}
    places = ((split_place(path), path) for path in paths)
    return np.array([known.setdefault(place[0] if place else path, len(known)) for place, path in places], np.int64)
