"""From items of a dataset to pixels: which files are there, regions cut from their images, the photos of stories."""

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.items import Items, packed
from captioning.errors import UserError, first_few, warn
from captioning.images.archives import archive_of, member_exists
from captioning.images.image_file import image_error, image_exists, open_image

# A region may reach this share of its size beyond its image (people drew them); more, and it is another image's.
SLACK = 0.1


@dataclass
class StoryPixels:
    """The photos of B items, one after the other, where an item may have several: the encoder's output is averaged.

    photos: (P, 3, H, W) uint8; owner: (P,) int64, the photo's item in 0..B-1; every item has at least one.
    """

    photos: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return int(self.owner[-1]) + 1

    def to(self, device, non_blocking: bool = True) -> "StoryPixels":
        return StoryPixels(*(x.to(device, non_blocking=non_blocking) for x in (self.photos, self.owner)))

    def pin_memory(self) -> "StoryPixels":
        return StoryPixels(self.photos.pin_memory(), self.owner.pin_memory())

    def mean(self, features: Tensor) -> Tensor:
        """Features of the photos (P, ...) -> means over each item's photos (B, ...)."""
        counts = torch.bincount(self.owner)
        sums = features.new_zeros(len(counts), *features.shape[1:]).index_add(0, self.owner, features)
        return sums / counts.view(-1, *[1] * (features.dim() - 1)).to(features.dtype)


def encoded(run: Callable[[Tensor], dict[str, Tensor]], pixels: Tensor | StoryPixels) -> dict[str, Tensor]:
    """What several encoders, by name, make of the B items of a batch."""
    if isinstance(pixels, StoryPixels):
        return {name: pixels.mean(features) for name, features in run(pixels.photos).items()}
    return run(pixels)


def stacked(pixels: list[Tensor]) -> Tensor | StoryPixels:
    """A batch of what PhotoLoader.load gave: (B, 3, H, W) or any other shape, StoryPixels where items are stories."""
    if all(isinstance(one, Tensor) for one in pixels):
        return torch.stack(pixels)
    stories = [one if isinstance(one, list) else [one] for one in pixels]
    owner = np.repeat(np.arange(len(stories)), [len(photos) for photos in stories])
    return StoryPixels(torch.stack([photo for photos in stories for photo in photos]), torch.from_numpy(owner))


class PhotoLoader:
    """Opens the images of items and runs `transform`, (PIL image, seed) -> uint8 tensor, on them."""

    def __init__(self, transform: Callable):
        self.transform = transform
        self._last: tuple = (None, None)  # regions come one after the other from one image

    def load(self, item: ImageItem, seed: Callable[[int], int | None], bad: list[str]) -> Tensor | list[Tensor] | None:
        """The pixels of an item, those of each photo of a story; None where nothing of it can be read.

        seed: number of the photo within the item -> seed of its augmentation. What is wrong with images goes to `bad`.
        """
        good = []
        for number, photo in enumerate(item.photos or (item,)):
            try:
                good.append(self.transform(self._open(photo), seed(number)))
            except (UserError, OSError) as error:
                message = str(error) if isinstance(error, UserError) else f"{photo.path}: {error}"
                bad.append(f"{message} (of story {item.image_id})" if item.photos else message)
        return None if not good else good if item.photos else good[0]

    def blank(self, item: ImageItem) -> Tensor | list[Tensor]:
        """What `load` gives of an item whose image, or one photo, is black."""
        pixels = self.transform(Image.new("RGB", (self.transform.size, self.transform.size)), 0)
        return [pixels] if item.photos else pixels

    def _open(self, item: ImageItem):
        if item.box is None:
            return open_image(item.path, getattr(self.transform, "size_hint", None))
        path, image = self._last
        if path != item.path:
            image = open_image(item.path)
            self._last = item.path, image
        return cut(image, item)


def cut(image, item: ImageItem):
    """The region `item.box` of a PIL image. Raises ImageError naming the item where it does not lie in the image."""
    x, y, width, height = item.box
    bounds = [max(0, x), max(0, y), min(image.width, x + width), min(image.height, y + height)]
    box = [round(value) for value in bounds]
    beyond = [width - (bounds[2] - bounds[0]) - SLACK * width, height - (bounds[3] - bounds[1]) - SLACK * height]
    if max(beyond) > 1 or box[2] <= box[0] or box[3] <= box[1]:
        place = f"region {item.image_id}, {width:g}x{height:g} at ({x:g}, {y:g})"
        size = f"{image.width}x{image.height} pixels (was it resized?)"
        raise image_error(item.path, f"{place}, is not within the image of {size}")
    return image.crop(box)


def file_exists(path: str, listed: dict[str, set[str]]) -> bool:
    """Whether there is an image file `path`. listed: folder -> names in it, for each folder that was asked for."""
    if archive_of(path):
        return member_exists(path)
    folder, name = os.path.split(path)
    if folder not in listed:
        listed[folder] = set()
        with contextlib.suppress(OSError):  # a folder that cannot be listed
            listed[folder].update(os.listdir(folder or "."))
    return name in listed[folder] or image_exists(path)  # the second where letter case does not matter


def with_files(dataset: CaptionDataset, items: Iterable[ImageItem]) -> tuple[Items, list[str]]:
    """The items whose image file exists, and a message for each file that does not.

    A story goes on with the photos that are there. Raises UserError where the folder of images, or every file, is
    missing.
    """
    dataset.require_images()
    items = packed(items)
    listed: dict[str, set[str]] = {}
    present, cut_short, absent, bad = [], {}, [], []  # numbers of items; number of a story -> the item that is left
    for number, item in enumerate(items):
        photos = item.photos or (item,)
        there = [photo for photo in photos if file_exists(photo.path, listed)]
        lost = [photo for photo in photos if photo not in there] if len(there) < len(photos) else []
        absent += lost
        whose = f" (of story {item.image_id})" if item.photos else ""
        bad += [f"no such image: {photo.path}{whose}" for photo in lost]
        if there:
            present.append(number)
            if lost:
                cut_short[number] = replace(item, photos=there)
    if absent:
        names = first_few(dict.fromkeys(item.path for item in absent))
        if not present:
            raise UserError(f"--dataset {dataset.name}: none of its {len(items)} image files is there: {names}")
        total = sum(len(item.photos or (item,)) for item in items)
        warn(f"--dataset {dataset.name}: {len(absent)} of {total} image files are missing and left out: {names}")
    if cut_short:
        return Items(cut_short.get(number) or items[number] for number in present), bad
    return items.chosen(present) if absent else items, bad
