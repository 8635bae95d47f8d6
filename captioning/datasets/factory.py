"""Dataset classes by their names in datasets.conf; `open_dataset`, which joins sections and paths with +."""

from dataclasses import replace

from captioning.datasets.base import CaptionDataset
from captioning.datasets.caption_file import CaptionFile
from captioning.datasets.coco import CocoDataset
from captioning.datasets.config import DatasetParams, get_datasets
from captioning.datasets.folder import GenericDataset
from captioning.datasets.items import joined
from captioning.datasets.picsom import PicSOMDataset
from captioning.datasets.shards import WebDataset
from captioning.datasets.video import MSRVTTDataset, TRECVID2018Dataset
from captioning.datasets.vist import VistDataset
from captioning.datasets.visual_genome import VisualGenomeIM2PDataset, VisualGenomeRegionsDataset
from captioning.errors import UserError

DATASET_CLASSES = {
    kind.__name__: kind
    for kind in (
        CocoDataset,
        GenericDataset,
        MSRVTTDataset,
        PicSOMDataset,
        TRECVID2018Dataset,
        VisualGenomeIM2PDataset,
        VisualGenomeRegionsDataset,
        VistDataset,
        CaptionFile,
        WebDataset,
    )
}


def open_dataset(
    spec: str, config_file: str | None = None, images: str | None = None, option: str = "--dataset"
) -> CaptionDataset:
    """The dataset `spec`, sections of datasets.conf, paths of captions or tar shards, "a:x+b:y" joined.

    images: where the images of paths lie; option: the flag that errors name. Raises UserError for whatever is wrong
    with the configuration or a caption file.
    """
    return join_datasets([class_of(params)(params) for params in get_datasets(spec, config_file, option, images)])


def class_of(params: DatasetParams) -> type[CaptionDataset]:
    """The class that reads a dataset. Raises UserError for an unknown one."""
    if params.dataset_class not in DATASET_CLASSES:
        unknown = f"{params.config_path}: [{params.name}] unknown dataset_class {params.dataset_class!r}"
        raise UserError(f"{unknown}; known: {', '.join(DATASET_CLASSES)}")
    return DATASET_CLASSES[params.dataset_class]


def join_datasets(parts: list[CaptionDataset]) -> CaptionDataset:
    """One dataset of all items of `parts`, which remember where they come from. The parts share its arrays then."""
    if len(parts) == 1:
        return parts[0]
    dataset = CaptionDataset(replace(parts[0].params, name="+".join(part.name for part in parts)))
    dataset.parts, dataset.items, first = parts, joined(part.items for part in parts), 0
    dataset.damaged = [line for part in parts for line in part.damaged]
    for part in parts:
        part.items = dataset.items[first : first + len(part)]
        first += len(part)
    return dataset
