"""Encoding a dataset's images into a feature file, by one process or by several that torchrun started.

Shapes: B images in a batch, S size of an image in pixels, D feature size, h x w size of a map.
"""

import numpy as np
import torch

from captioning.cores import first_speaks
from captioning.datasets.base import CaptionDataset
from captioning.devices import from_main, to_main
from captioning.encoder.factory import build_encoder
from captioning.encoder.joint import encode_all, share_layers
from captioning.encoder.ten_crops import pooled_crops
from captioning.encoder.transforms import ImageTransform, TenCrops
from captioning.errors import UserError
from captioning.features.writer import FeatureWriter
from captioning.progress import Bar
from data_loader import Loader, LoaderSettings, get_eval_loader
from inference.sharing import my_share


class PhotoEncoder:
    """Encoders with the image transform that they need, and the provenance that feature files keep of both.

    names, weights, changes: as build_encoder's, for each of several encoders; feature_type: "plain" for the whole
    image, "avg" or "max" over ten crops of an image resized to `image_size` (None: the usual proportion to the
    encoder's own size); mirror: whether images are encoded as in a mirror.
    shapes: of the features of each; provenances: what made them, for each feature file: the encoder, its weights and
    the transform. Layers that encoders share run once. Raises UserError for what build_encoder refuses, crops that are
    larger than the image, and encoders that want images of different sizes.
    """

    def __init__(
        self,
        names: list[str],
        weights: str | None,
        changes: dict,
        feature_type: str = "plain",
        image_size: int | None = None,
        mirror: bool = False,
    ):
        self.feature_type, self.mirror = feature_type, mirror
        self.encoders = [build_encoder(name, weights=weights, transform=changes or None) for name in names]
        share_layers(self.encoders)
        self.shapes = [encoder.shape for encoder in self.encoders]
        transform = self.encoders[0].transform
        size, interpolation = transform["size"], transform["interpolation"]
        for encoder in self.encoders:
            if (encoder.transform["size"], encoder.transform["interpolation"]) != (size, interpolation):
                raise UserError(
                    f"--extractor: {names[0]} and {encoder.name} want images of different sizes: --crop_size"
                )
        self.transform, more = ImageTransform(size, interpolation), {}
        if feature_type != "plain":
            self.transform = TenCrops(size, image_size or round(size * 256 / 224), interpolation)
            more = {"image_size": self.transform.image_size}
        self.provenances = [
            {"extractor": name, "weights_sha256": encoder.weights_sha256, "transform": encoder.transform}
            | {"feature_type": feature_type, **more}
            for name, encoder in zip(names, self.encoders)
        ]

    def to(self, device: torch.device) -> None:
        for encoder in self.encoders:
            encoder.to(device)

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> list[np.ndarray]:
        """pixels (B, 3, S, S), or (B, 10, 3, S, S) of ten crops -> features (B, D) or (B, D, h, w) of each encoder."""
        pixels = pixels.to(self.encoders[0].mean.device, non_blocking=True)
        if self.mirror:
            pixels = pixels.flip(-1)
        if self.feature_type == "plain":
            features = encode_all(dict(enumerate(self.encoders)), pixels).values()
        else:
            features = [pooled_crops(encoder, pixels, self.feature_type) for encoder in self.encoders]
        return [one.cpu().numpy() for one in features]


def share_of(dataset: CaptionDataset, transform, batch_size: int, workers: int | None) -> Loader:
    """The loader of this process' share of the images; only the first process names images that are missing."""
    settings = my_share(LoaderSettings(batch_size, num_workers=workers))
    with first_speaks():
        return get_eval_loader(dataset, settings=settings, transform=transform)


def extract(encoder: PhotoEncoder, loader: Loader, writers: list[FeatureWriter | None], dtype: str) -> None:
    """Encode the loader's images. Every process encodes its share; the first one, which has the writers, writes all.

    There is a writer for each of the encoders, None where its file is complete; none gets a record twice.

    The shares go to it batch by batch, so that the file and what --resume finds of it are the same for any number of
    processes.
    """
    bar = Bar(len(loader.items), "extracting", "image")
    todos = [set() if writer is None else set(writer.todo) for writer in writers]
    batches = iter(loader)
    batch = next(batches, None)
    for number in range(from_main(lambda: len(loader))):
        share = None
        if batch is not None and batch.index == number:  # a batch of nothing but broken images is passed over
            features = encoder.encode(batch.pixels)
            with np.errstate(over="ignore"):  # the writer refuses values that are too large
                features = [one.astype(dtype, copy=False) for one in features]
            share = [item.key for item in batch.items], features, len(batch.bad)
            batch = next(batches, None)
        for keys, several, bad in filter(None, to_main(share)):
            for writer, rows, todo in zip(writers, several, todos):
                for key, row in zip(keys, rows):
                    if key in todo:
                        writer.write(key, row)
            bar.update(len(keys) + bad)
    bar.close()
