"""Splits by a hash: numbers worked out elsewhere, and what the order of images does not change."""

import hashlib

import pytest

from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.config import DatasetParams
from captioning.datasets.splits import divided, held_out, place_of, split_of
from captioning.errors import UserError


def test_the_hash_is_that_of_the_name():
    # from: printf a.jpg | sha256sum
    assert place_of("a.jpg") == int(hashlib.sha256(b"a.jpg").hexdigest()[:16], 16) / 2**64
    assert place_of("x/y/a.jpg") == place_of("C:\\x\\a.jpg") == place_of("a.jpg")
    assert place_of("e\u0301.jpg") == place_of("\u00e9.jpg")  # as a Mac writes it, and others
    assert 0 <= place_of("\udcff.jpg") < 1


def test_shares():
    found = [split_of(f"{number}.jpg") for number in range(5000)]
    assert abs(found.count("train") - 4000) < 120 and abs(found.count("val") - 500) < 90
    assert all(split_of(f"{n}.jpg") == "val" for n in range(200) if place_of(f"{n}.jpg") < 0.1)


def test_held_out():
    names = [f"{number}.jpg" for number in range(80)]
    out = held_out(names, 0.1)
    assert len(out) == 8 and out == held_out([f"x/{name}" for name in reversed(names)], 0.1)
    assert max(map(place_of, out)) < min(place_of(name) for name in names if name not in out)
    assert len(held_out(names[:3], 0.01)) == 1 and len(held_out(names[:3], 0.99)) == 2


def test_divided():
    dataset = CaptionDataset(DatasetParams("own", "CaptionFile"))
    dataset.items = [ImageItem(n, f"{n}.jpg", None, ["a ball"] if n % 2 else []) for n in range(20)]
    training, validation = divided(dataset, 0.3, "--val_fraction 0.3")
    assert len(validation) == 3 and all(item.captions for item in validation.items) and len(training) == 17
    both = training.items.feature_keys() + validation.items.feature_keys()
    assert sorted(both) == sorted(dataset.items.feature_keys())
    dataset.items = dataset.items[:2]
    with pytest.raises(UserError, match="--val_fraction 0.3: --dataset own has 1 images with captions"):
        divided(dataset, 0.3, "--val_fraction 0.3")
