"""Batches over tar shards: every caption once for any numbers of shards and processes, exact positions, locality."""

import itertools
from collections import Counter

import numpy as np
import pytest
from toy_shards import make_shards, write_section

from captioning.batches.sampler import LoaderSettings
from captioning.batches.shard_sampler import ShardBatchSampler, shard_numbers, through_buffer
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from captioning.images.tar_file import member_path


def samplers(sizes, processes, counts=None, parts=(), **settings) -> list[ShardBatchSampler]:
    """One for each process, over shards of so many items."""
    shards = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.ones(len(shards), int) if counts is None else counts
    several = [
        LoaderSettings(**{"captions_per_image": 1, "batch_size": 4, **settings}, rank=rank, world_size=processes)
        for rank in range(processes)
    ]
    return [ShardBatchSampler(counts, one, parts or [0] * len(shards), shards) for one in several]


def shown(sampler, epoch: int = 1, start: int = 0) -> list:
    sampler.set_position(epoch, start)
    return list(sampler)


@pytest.mark.parametrize("buffer", [1, 3, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[23], [1, 9, 2], [5] * 12, [40, 1, 1, 1, 1]], ids=str)
def test_every_caption_once(sizes, processes, buffer):
    counts = np.random.default_rng(1).integers(0, 6, sum(sizes))
    every = samplers(sizes, processes, counts, captions_per_image=2, shuffle_buffer=buffer, batch_size=8)
    epochs = []
    for epoch in (1, 2):
        batches = [shown(sampler, epoch) for sampler in every]
        assert {len(own) for own in batches} == {len(sampler) for sampler in every} == {len(batches[0])}
        for step in zip(*batches):
            sizes_of = [len(batch) for batch in step]
            assert max(sizes_of) - min(sizes_of) <= 1 and min(sizes_of) >= min(2, sum(sizes_of) // processes)
        seen = Counter((item, caption) for own in batches for batch in own for item, some in batch for caption in some)
        assert seen == Counter((item, caption) for item, count in enumerate(counts) for caption in range(count))
        epochs.append(batches)
        for own, sampler in zip(batches, every):
            for start in (1, len(own) // 2, len(own)):
                assert shown(sampler, epoch, start) == own[start:]
    assert epochs[0] != epochs[1]
    assert [shown(sampler) for sampler in samplers(sizes, processes, counts, captions_per_image=2,
        shuffle_buffer=buffer, batch_size=8)] == epochs[0]  # fmt: skip
    other = [shown(one) for one in samplers(sizes, processes, counts, captions_per_image=2, seed=7, batch_size=8)]
    assert other != epochs[0]


def order_of(sampler) -> list[int]:
    return [item for batch in shown(sampler) for item, _ in batch]


def test_a_few_shards_at_a_time():
    """Without a buffer shard after shard; with one, never an item that is further on than the buffer is large."""
    sizes = [50] * 40
    (plain,) = samplers(sizes, 1, shuffle_buffer=1)
    read = order_of(plain)
    shards = [shard for shard, _ in itertools.groupby(item // 50 for item in read)]
    assert sorted(shards) == list(range(40)) and shards != sorted(shards)
    (mixed,) = samplers(sizes, 1, shuffle_buffer=100)
    place = {item: number for number, item in enumerate(read)}
    shifts = [place[item] - number for number, item in enumerate(order_of(mixed))]
    assert max(shifts) < 100 and min(shifts) < -100 and 30 < np.std(shifts) < 300


def test_processes_have_shards_of_their_own():
    """Each shard is read by one process, but for those on the bounds between two."""
    sizes = np.random.default_rng(0).integers(20, 80, 30)
    bounds = np.cumsum(sizes)
    readers = Counter()
    for sampler in samplers(sizes, 4, shuffle_buffer=50):
        readers.update({int(np.searchsorted(bounds, item, "right")) for item in order_of(sampler)})
    assert len(readers) == 30 and sum(readers.values()) <= 30 + 3


def test_mix():
    (sampler,) = samplers([6, 6], 1, None, [0] * 6 + [1] * 6, mix=(1.0, 2.5), shuffle_buffer=4)
    times = Counter(order_of(sampler))
    assert [times[item] for item in range(6)] == [1] * 6
    assert sorted(times[item] for item in range(6, 12)) == [2, 2, 2, 3, 3, 3]


def test_more_processes_than_images():
    with pytest.raises(UserError, match="2 images are too few for 3 processes"):
        samplers([1, 1], 3)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_buffer_keeps_every_value(size):
    values = np.arange(37) * 3
    found = through_buffer(values, size, np.random.default_rng(5))
    assert sorted(found.tolist()) == values.tolist() and found.dtype == values.dtype
    assert (found.tolist() == values.tolist()) == (size == 1)
    assert through_buffer(values[:0], size, np.random.default_rng(5)).tolist() == []


def test_numbers_of_shards():
    paths = [member_path(tar, 512, 3, "x.jpg") for tar in ("a.tar", "b.tar", "a.tar")] + ["x.jpg", "y.jpg", "x.jpg"]
    assert shard_numbers(paths).tolist() == [0, 1, 0, 2, 3, 2]


# ---- the loader ----


def transform(image, seed):
    import torch

    return torch.full((3, 2, 2), image.width, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_over_shards(tmp_path, workers):
    """Two processes with workers each: every picture once; from the middle on, the rest."""
    from data_loader import get_loader
    from vocabulary import SPECIALS, Vocabulary

    pytest.importorskip("webdataset")
    dataset = open_dataset("shards", write_section(tmp_path, make_shards(tmp_path, [5, 3, 6])))
    vocabulary = Vocabulary([*SPECIALS, "photo"])
    common = {"captions_per_image": 1, "batch_size": 2, "num_workers": workers, "shuffle_buffer": 4}
    seen = []
    for rank in range(2):
        loader = get_loader(dataset, vocabulary, (), LoaderSettings(**common, rank=rank, world_size=2), transform)
        loader.set_position(1)
        whole = [[item.image_id for item in batch.items] for batch in loader]
        loader.set_position(1, 2)
        assert [[item.image_id for item in batch.items] for batch in loader] == whole[2:]
        loader.close()
        seen += [image_id for batch in whole for image_id in batch]
        assert len(whole) == len(loader)
    assert sorted(seen) == [item.image_id for item in dataset.items]
