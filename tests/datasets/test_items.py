"""Items: images and captions in flat arrays are those that went in, in every order and choice, for every process."""

import gc
import os
import pickle
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.config import DatasetParams
from captioning.datasets.factory import join_datasets
from captioning.datasets.items import Items, joined, packed

texts = st.text(st.characters(), max_size=8)  # half characters and NUL too
ids = st.integers() | texts
boxes = st.tuples(*[st.integers(-(10**12), 10**12) | st.floats(allow_nan=False)] * 4)
photos = st.builds(ImageItem, ids, texts, st.none() | texts, st.just([]), st.integers(0, 3), st.none() | boxes)
images = st.builds(
    ImageItem,
    ids,
    texts,
    st.none() | texts,
    st.lists(texts, max_size=3),
    st.integers(0, 3),
    st.none() | boxes,
    st.just(()) | st.lists(photos, min_size=1, max_size=3),
    st.lists(texts, max_size=2).map(tuple),
)


@given(st.lists(images, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_items_are_those_that_went_in(several, data):
    items = Items(several)
    assert list(items) == several == items and len(items) == len(several)
    assert [repr(item) for item in items] == [repr(item) for item in several]  # 1 is no 1.0, 5 is no "5"
    numbers = data.draw(st.lists(st.integers(0, len(several) - 1)) if several else st.just([]))
    some, listed = items.chosen(numbers), [several[number] for number in numbers]
    for given_items, plain in ((items, several), (some, listed), (some.chosen(range(len(some))), listed)):
        assert given_items == plain and given_items[1:] == plain[1:] and given_items[::-2] == plain[::-2]
        assert list(given_items.captions()) == [text for item in plain for text in item.captions]
        assert given_items.num_captions == sum(given_items.caption_counts())
        assert given_items.caption_counts() == [len(item.captions) for item in plain]
        assert given_items.captioned() == [item for item in plain if item.captions]
        assert given_items.where(lambda item: item.part > 0) == [item for item in plain if item.part > 0]
        assert given_items.of_part(1) == [item for item in plain if item.part == 1]
        assert given_items.of_part(0) == [item for item in plain if item.part == 0]
        columns = given_items.image_ids(), given_items.feature_keys(), given_items.paths(), given_items.parts()
        names = "image_id", "key", "path", "part"
        assert columns == tuple([getattr(item, name) for item in plain] for name in names)
        assert given_items.lack_paths == any(item.path is None for item in plain)
        assert given_items.have_photos == any(item.photos for item in plain)
        assert given_items.have_other_keys == any(item.other_keys for item in plain)
        assert pickle.loads(pickle.dumps(given_items)) == plain
        assert given_items.caption_hash() == Items(plain).caption_hash()


def item(number: int, *captions: str) -> ImageItem:
    return ImageItem(number, f"{number}.jpg", f"/images/{number}.jpg", list(captions))


def test_an_item_that_is_changed_changes_nothing():
    items = Items([item(1, "a dog")])
    items[0].captions.append("a cat")
    items[0].path = None
    assert items == [item(1, "a dog")] and items != [item(1)] and items != "x"
    with pytest.raises(IndexError):
        items[1]
    with pytest.raises(AssertionError):
        items[:1].append(item(2))


def test_a_dataset_class_may_fill_them_in_every_way():
    dataset = CaptionDataset(DatasetParams("d", "CocoDataset"))
    dataset.items.append(item(1, "a dog"))
    dataset.items += [item(2)]
    dataset.items.extend(item(number) for number in (3, 4))
    assert len(dataset) == 4 and dataset.num_captions == 1 and list(dataset.captions()) == ["a dog"]
    dataset.items = (one for one in [item(7, "a cat")])
    assert dataset.items == [item(7, "a cat")] and packed(dataset.items) is dataset.items


def test_joined_items_know_their_part_and_the_parts_share_them():
    story = replace(item(5, "a day"), photos=[item(8), item(9)])
    parts = []
    for name, items in (("a", [item(1, "x"), item(2)]), ("b", [story])):
        parts.append(CaptionDataset(DatasetParams(name, "CocoDataset")))
        parts[-1].items = items
    dataset = join_datasets(parts)
    assert dataset.items == joined([Items([item(1, "x"), item(2)]), Items([story])])
    assert dataset.items.parts() == [0, 0, 1] and [photo.part for photo in dataset.items[2].photos] == [1, 1]
    assert parts[0].items == dataset.items[:2] and parts[1].items == dataset.items[2:]
    assert parts[1].items.parts() == [1] and dataset.items.of_part(1) == parts[1].items


def test_the_hash_is_of_captions_and_their_images():
    plain = Items([item(1, "ab", "c"), item(2, "d")])
    assert plain.caption_hash() == Items([item(7, "ab", "c"), item(8, "d")]).caption_hash()  # the ids do not matter
    others = [
        [item(1, "ab"), item(2, "c", "d")],
        [item(1, "a", "bc"), item(2, "d")],
        [item(2, "d"), item(1, "ab", "c")],
    ]
    assert len({Items(other).caption_hash() for other in (plain, *others)}) == 4


def test_the_number_of_objects_does_not_grow_with_the_images():
    gc.collect()
    before = len(gc.get_objects())
    items = Items(item(number, "a dog", "a cat") for number in range(5_000))
    gc.collect()
    assert len(items) == 5_000 and len(gc.get_objects()) - before < 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and /proc")
def test_a_forked_process_that_reads_all_items_copies_none():
    def private() -> int:
        with open("/proc/self/smaps_rollup") as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    text = "a caption of an image, long enough to be worth sharing " * 4
    items = Items(item(number, text, text) for number in range(20_000))  # 9 MB of captions
    reader, writer = os.pipe()
    if not (child := os.fork()):
        gc.disable()  # it writes to the objects of the whole suite
        for _ in items:
            before = private()
            break
        for _ in items:
            pass
        os.write(writer, str(private() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 20)) < 2_000  # kB; of a list of ImageItems all of it, and their pages
