"""Photos for models trained on features of ten crops: the views of a photo that each of their encoders needs.

    transform = PhotoViews(whole=ImageTransform(224, "bilinear"), crops=TenCrops(224, 256))
    pixels = transform(image)                       # (11, 3, 224, 224): the whole image, then its ten crops
    features = TenCropFeatures(extractor, "avg")(pixels.unsqueeze(0))   # (1, D)

Shapes: B images, W views of each, S size in pixels, D feature size.
"""

import torch
from PIL import Image
from torch import Tensor, nn

from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.transforms import ImageTransform, TenCrops

CROPS = 10


class PhotoViews:
    """PIL RGB image -> uint8 tensor (W, 3, S, S): the whole image where `whole` is given, then its ten crops.

    Both must give squares of the same size. Holds plain values only, so that it travels to loader workers.
    """

    def __init__(self, whole: ImageTransform | None, crops: TenCrops):
        self.whole, self.crops = whole, crops
        self.size, self.interpolation = crops.size, crops.whole.interpolation
        self.size_hint = crops.whole.size_hint

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        views = self.crops(image, seed)
        return views if self.whole is None else torch.cat([self.whole(image, seed).unsqueeze(0), views])


class TenCropFeatures(nn.Module):
    """An encoder of vectors over the last ten of the views of each photo: their mean ("avg") or largest values ("max").

    The same numbers as extract_features.py --feature_type. `transform` is the encoder's, `image_size` the side of the
    square that is cropped, in pixels.
    """

    def __init__(self, extractor: ImageEncoder, kind: str, image_size: int):
        super().__init__()
        self.extractor, self.kind, self.image_size = extractor, kind, image_size
        self.transform = extractor.transform

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, W, 3, S, S), W >= 10 -> (B, D)."""
        return pooled_crops(self.extractor, pixels[:, -CROPS:], self.kind)


def pooled_crops(extractor: ImageEncoder, pixels: Tensor, kind: str) -> Tensor:
    """Features (B, D) of ten crops (B, 10, 3, S, S) each: `kind` "avg" or "max" over the crops."""
    features = extractor(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])  # B,10,D
    return features.mean(1) if kind == "avg" else features.amax(1)


def encode_views(extractor: nn.Module, pixels: Tensor) -> Tensor:
    """What an encoder makes of pixels (B, 3, S, S) or views (B, W, 3, S, S); a plain one encodes the whole image."""
    views = pixels.dim() == 5 and not isinstance(extractor, TenCropFeatures)
    return extractor(pixels[:, 0] if views else pixels)


def photo_transform(extractors: list[nn.Module], plain: ImageTransform) -> ImageTransform | PhotoViews:
    """The transform that makes the views which `extractors` need; `plain` is that of the whole image."""
    sizes = {extractor.image_size for extractor in extractors if isinstance(extractor, TenCropFeatures)}
    if not sizes:
        return plain
    if len(sizes) > 1:
        raise ValueError(f"ten crops of images of different sizes: {sorted(sizes)}")
    crops = TenCrops(plain.size, sizes.pop(), plain.interpolation)
    whole = any(not isinstance(extractor, TenCropFeatures) for extractor in extractors)
    return PhotoViews(plain if whole else None, crops)


def with_size(transform: ImageTransform | PhotoViews, size: int) -> ImageTransform | PhotoViews:
    """The same transform to squares of another `size` in pixels."""
    plain = ImageTransform(size, transform.interpolation)
    if not isinstance(transform, PhotoViews):
        return plain
    larger = round(transform.crops.image_size * size / transform.size)
    return PhotoViews(plain if transform.whole else None, TenCrops(size, larger, transform.interpolation))
