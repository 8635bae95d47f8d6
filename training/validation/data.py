"""The images that a run trains on and validates with: those of its flags, and batches of them for validation."""

from captioning.batches.features import CachedFeatures
from captioning.batches.inputs import plan_inputs
from captioning.cores import first_speaks
from captioning.datasets.base import CaptionDataset
from captioning.datasets.factory import open_dataset
from captioning.datasets.splits import divided
from captioning.devices import process
from captioning.errors import warn
from data_loader import Loader, LoaderSettings, get_eval_loader
from model import Captioner
from training.feature_cache import copied, readable
from training.settings import DataSettings
from vocabulary import MOST_UNKNOWN

BATCH_SIZE = 64  # images


def open_images(data: DataSettings, validation: bool = False) -> CaptionDataset:
    """The images of --dataset, or of the validation data: those of --validate, or a --val_fraction of --dataset."""
    if validation and data.validate:
        return open_dataset(data.validate, data.dataset_config_file, data.images, "--validate")
    option = "--captions" if data.captions else "--dataset"
    dataset = open_dataset(data.dataset, data.dataset_config_file, data.images, option)
    if data.val_fraction:
        return divided(dataset, data.val_fraction, f"--val_fraction {data.val_fraction:g}")[validation]
    return dataset


def validation_loader(
    captioner: Captioner, data: DataSettings, cached: dict[str, CachedFeatures] | None = None
) -> Loader:
    """The captioned images of the validation data with the features, or the pixels, that the captioner reads.

    All of them, or those of the first `data.num_batches` batches; of several processes each has its share of the
    batches, and only the first warns. cached: what `cache_features` gave.
    """
    with first_speaks():
        return _validation_loader(captioner, data, cached)


def _validation_loader(captioner: Captioner, data: DataSettings, cached: dict | None) -> Loader:
    config, (rank, count) = captioner.config, process()
    images = readable(open_images(data, validation=True), cached or {})
    if data.num_batches:
        images = copied(images, images.items.captioned()[: data.num_batches * BATCH_SIZE])
    inputs = plan_inputs(config, images, sources=cached)
    most = config.paragraphs and config.paragraphs.max_sentences
    settings = LoaderSettings(
        BATCH_SIZE,
        num_workers=data.num_workers,
        max_sentences=most,
        ids_folder=data.ids_folder,
        rank=rank,
        world_size=count,
    )
    loader = get_eval_loader(images, inputs, settings, captioner.transform, captioner.vocabulary)
    if (share := loader.unknown_share) > MOST_UNKNOWN:
        what = f"--validate {data.validate}" if data.validate else "--val_fraction"
        warn(f"{what}: the model's vocabulary lacks {share:.0%} of the words of its captions")
    return loader
