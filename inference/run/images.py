"""Which images infer.py captions: those of files and folders, or those of a dataset.

wanted = ImageFlags.of(vars(args))
dataset = wanted.open()
rest = with_items(dataset, dataset.items[10:])
"""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioning.config import Settings
from captioning.datasets.base import CaptionDataset, ImageItem, image_key, shared_ids
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.datasets.names import short_names
from captioning.errors import UserError, first_few, note, script_name
from captioning.images.listing import PassedOver
from inference.image_arguments import holds_images, named_images
from inference.image_outputs import outside
from inference.results.result import Style


@dataclass(frozen=True)
class ImageFlags(Settings):
    """The flags of infer.py that name images. write_metadata: the folder of copies, which are not captioned again."""

    images: Sequence[str] = ()
    image_dir: str | None = None
    recursive: bool = False
    dataset: str | None = None
    dataset_images: str | None = None
    dataset_config_file: str | None = None
    write_metadata: str | None = None

    def open(self) -> CaptionDataset:
        """The images. Raises UserError where there are none, or where flags contradict each other."""
        loose = bool(self.images or self.image_dir)
        if loose and self.dataset in (None, "generic"):
            return self._files()
        if loose:
            raise UserError(f"--dataset {self.dataset} and images or --image_dir exclude each other")
        if not self.dataset:
            raise UserError("nothing to caption: give image files, folders, --image_dir or --dataset")
        return open_dataset(self.dataset, self.dataset_config_file, self.dataset_images)

    def _files(self) -> CaptionDataset:
        """The images of files, folders, zip files and patterns, each once. What was left out is counted on stderr."""
        if self.recursive and not self.image_dir and not any(map(holds_images, self.images)):
            raise UserError("--recursive is for folders: name one, or give --image_dir")
        passed = PassedOver()
        files = named_images(self.images, self.recursive, passed)
        dataset = GenericDataset(files=files, image_dir=self.image_dir, recursive=self.recursive, passed=passed)
        if line := passed.line():
            note(f"{script_name()}: {line}")
        once: dict[str, ImageItem] = {}
        for item in dataset.items:
            once.setdefault(os.path.abspath(item.path), item)
        if twice := len(dataset) - len(once):
            dataset.items = list(once.values())
            note(f"{script_name()}: {twice} images of {self.image_dir} are named twice: each is captioned once")
        if self.write_metadata and (copies := len(dataset) - len(left := outside(dataset.items, self.write_metadata))):
            dataset.items = left
            note(f"{script_name()}: passed over: {copies} images in {self.write_metadata}, where the copies are")
        return dataset

    def source(self, loose: str) -> str:
        """What the images are from: the dataset, the name of the only folder, or else `loose`."""
        if self.dataset:
            return short_names(self.dataset)
        places = [self.image_dir] if self.image_dir else self.images
        alone = len(places) == 1 and (self.image_dir or holds_images(places[0])) and os.path.exists(places[0])
        return Path(places[0]).resolve().name if alone else loose


def check_names(dataset: CaptionDataset, style: Style) -> None:
    """Raises UserError where two images would have the same name in the results."""
    if style.paths:
        names = {image_key(item): style.id_of(item) for item in dataset.items}
        if len(set(names.values())) < len(names):
            raise UserError("--store_image_paths: several items share a photo, so a path does not tell them apart")
    elif shared := shared_ids(dataset):
        what = f"{len(shared)} image ids are in more than one of them: {first_few(shared)}"
        advice = "caption them one by one, or name images by their paths with --store_image_paths"
        raise UserError(f"--dataset {dataset.name}: {what}; {advice}")


def with_items(dataset: CaptionDataset, items: Iterable[ImageItem]) -> CaptionDataset:
    """A copy of the dataset that has these items of it only."""
    rest = copy.copy(dataset)  # its parts stay whole: rows of a feature file may follow their order
    rest.items = items
    return rest


def check_feature_files(dataset: CaptionDataset, names: Sequence[str | None]) -> None:
    """Raises UserError where a feature file is not there. names: of files, or lists of them parted by commas."""
    files = [name.strip() for text in names if text for name in text.split(",")]
    if not files:
        return
    from captioning.features.factory import is_feature_file
    from captioning.features.places import own_place, require_feature_file

    for name in filter(is_feature_file, files):
        for part in dataset.parts:
            require_feature_file(part, own_place(dataset.parts, name))
