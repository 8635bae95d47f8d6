"""Encoding a dataset's images into a feature file, by one process or by several that torchrun started.

Shapes: B images in a batch, S size of an image in pixels, D feature size, h x w size of a map.
"""

import numpy as np
import torch

from captioning.cores import first_speaks
from captioning.datasets.base import CaptionDataset
from captioning.devices import from_main, to_main
from captioning.encoder.factory import build_encoder
from captioning.encoder.ten_crops import pooled_crops
from captioning.encoder.transforms import ImageTransform, TenCrops
from captioning.features.writer import FeatureWriter
from captioning.progress import Bar
from data_loader import Loader, LoaderSettings, get_eval_loader
from inference.sharing import my_share


class PhotoEncoder:
    """An encoder with the image transform that it needs, and the provenance that a feature file keeps of both.

    name, weights, changes: as build_encoder's; feature_type: "plain" for the whole image, "avg" or "max" over ten
    crops of an image resized to `image_size` (None: the usual proportion to the encoder's own size).
    provenance: what made the features, for the feature file: the encoder, its weights and the transform.
    Raises UserError for what build_encoder refuses, and for crops that are larger than the image.
    """

    def __init__(self, name: str, weights: str | None, changes: dict, feature_type: str, image_size: int | None):
        self.feature_type = feature_type
        self.encoder = build_encoder(name, weights=weights, transform=changes or None)
        self.shape, transform = self.encoder.shape, self.encoder.transform
        size, interpolation = transform["size"], transform["interpolation"]
        self.transform = ImageTransform(size, interpolation)
        self.provenance = {"extractor": name, "weights_sha256": self.encoder.weights_sha256}
        self.provenance |= {"transform": transform, "feature_type": feature_type}
        if feature_type != "plain":
            self.transform = TenCrops(size, image_size or round(size * 256 / 224), interpolation)
            self.provenance["image_size"] = self.transform.image_size

    def to(self, device: torch.device) -> None:
        self.encoder.to(device)

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> np.ndarray:
        """pixels (B, 3, S, S), or (B, 10, 3, S, S) of ten crops -> features (B, D) or (B, D, h, w)."""
        pixels = pixels.to(self.encoder.mean.device, non_blocking=True)
        if self.feature_type == "plain":
            return self.encoder(pixels).cpu().numpy()
        return pooled_crops(self.encoder, pixels, self.feature_type).cpu().numpy()


def share_of(dataset: CaptionDataset, transform, batch_size: int, workers: int | None) -> Loader:
    """The loader of this process' share of the images; only the first process names images that are missing."""
    settings = my_share(LoaderSettings(batch_size, num_workers=workers))
    with first_speaks():
        return get_eval_loader(dataset, settings=settings, transform=transform)


def extract(encoder: PhotoEncoder, loader: Loader, writer: FeatureWriter | None, dtype: str) -> None:
    """Encode the loader's images. Every process encodes its share; the first one, which has the writer, writes all.

    The shares go to it batch by batch, so that the file and what --resume finds of it are the same for any number of
    processes.
    """
    bar = Bar(len(loader.items), "extracting", "image")
    batches = iter(loader)
    for _ in range(from_main(lambda: len(loader))):
        batch = next(batches, None)
        share = None
        if batch is not None:
            features = encoder.encode(batch.pixels)
            with np.errstate(over="ignore"):  # the writer refuses values that are too large
                share = [item.key for item in batch.items], features.astype(dtype, copy=False), len(batch.bad)
        for keys, rows, bad in filter(None, to_main(share)):
            for key, row in zip(keys, rows):
                writer.write(key, row)
            bar.update(len(keys) + bad)
    bar.close()
