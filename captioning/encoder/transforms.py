"""Image transforms: a PIL image becomes a square of uint8 pixels; random crops for training, ten crops for features."""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.errors import UserError


class ImageTransform:
    """PIL RGB image -> uint8 tensor (3,size,size). Holds plain values only, so that it travels to loader workers.

    Without `train` the whole image is resized with antialiasing. With it the image is resized to a square of
    round(size * 256 / 224), cropped to `size` at a random place and mirrored every other time; the same `seed` gives
    the same crop. `size_hint` is for image_file.open_image(). Raises UserError for an unknown interpolation.
    """

    FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def __init__(self, size: int, interpolation: str = "bilinear", train: bool = False):
        if interpolation not in self.FILTERS:
            raise UserError(f"unknown interpolation {interpolation!r}: use one of {', '.join(self.FILTERS)}")
        self.size, self.interpolation, self.train = int(size), interpolation, train
        self.resized = round(self.size * 256 / 224) if train else self.size
        self.size_hint = 3 * self.resized  # a JPEG may be decoded at a reduced scale down to this: no visible change

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        size = self.resized
        if image.size != (size, size):
            image = image.resize((size, size), self.FILTERS[self.interpolation], reducing_gap=3.0)
        pixels = np.asarray(image)  # H,W,3
        if self.train:
            chance = random.Random(seed)
            top, left = chance.randint(0, size - self.size), chance.randint(0, size - self.size)
            pixels = pixels[top : top + self.size, left : left + self.size]
            if chance.random() < 0.5:
                pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class TenCrops:
    """PIL RGB image -> uint8 tensor (10,3,size,size): the corners and the middle of the image resized to a square of
    `image_size`, then the same mirrored. Holds plain values only, so that it travels to loader workers.
    """

    def __init__(self, size: int, image_size: int, interpolation: str = "bilinear"):
        if image_size < size:
            raise UserError(f"ten crops of {size} pixels need images of at least that size, not {image_size}")
        self.size, self.image_size = size, image_size
        self.whole = ImageTransform(image_size, interpolation)

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        pixels = self.whole(image)
        far, middle = self.image_size - self.size, (self.image_size - self.size) // 2
        corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
        crops = torch.stack([pixels[:, top : top + self.size, left : left + self.size] for top, left in corners])
        return torch.cat([crops, crops.flip(3)])
