"""Dividing images into training, validation and test by a hash of their names.

The hash is of the name of the file without its folders. It is the same on every machine and for any order of images.
"""

import copy
import hashlib
from collections.abc import Iterable

from captioning.datasets.base import CaptionDataset
from captioning.datasets.layouts.layout import base_name
from captioning.errors import UserError

SHARES = {"val": 0.1, "test": 0.1, "train": 0.8}  # of all images, in the order of their hash


def place_of(name: str) -> float:
    """A number from 0 to below 1 that follows from the name of an image."""
    digest = hashlib.sha256(base_name(name).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(name: str) -> str:
    """Which of SHARES the image falls to."""
    place, end = place_of(name), 0.0
    for split, share in SHARES.items():
        end += share
        if place < end:
            return split
    return "train"


def held_out(names: Iterable[str], fraction: float) -> set[str]:
    """The `fraction` of the names with the lowest hash: at least one, and not all. Equal names stay together."""
    ordered = sorted({base_name(name) for name in names}, key=lambda name: (place_of(name), name))
    return set(ordered[: min(max(1, round(fraction * len(ordered))), len(ordered) - 1)])


def divided(dataset: CaptionDataset, fraction: float, option: str) -> tuple[CaptionDataset, CaptionDataset]:
    """The images of `dataset` for training, and the `fraction` of those with captions that is held out for validation.

    The second has the same parts, since feature files follow them. Raises UserError, naming `option`, where there are
    not two images.
    """
    names = dataset.items.captioned().feature_keys()
    out = held_out(names, fraction)
    if not out:
        few = f"--dataset {dataset.name} has {len(set(names))} images with captions"
        raise UserError(f"{option}: {few}: it needs two or more")
    training, validation = copy.copy(dataset), copy.copy(dataset)
    held = [base_name(key) in out for key in dataset.items.feature_keys()]
    training.items = dataset.items.chosen(number for number, is_out in enumerate(held) if not is_out)
    validation.items = dataset.items.chosen(number for number, is_out in enumerate(held) if is_out)
    return training, validation
