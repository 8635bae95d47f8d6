"""Datasets of images and captions, a class per format; no torch. `open_dataset("coco:train2014", None)` reads one.

A class takes the DatasetParams of a section of datasets.conf and fills `items`: all images, in the order of the file,
those without captions too.
"""

import os
from collections.abc import Iterable
from dataclasses import replace

from common import UserError, read_json, read_lines
from dataset_config import DatasetParams, get_datasets
from dataset_items import ID, TEXT, CaptionDataset, ImageItem, checked_entries, some, warn
from images import list_images
from picsom_dataset import PicSOMDataset
from story_dataset import VistDataset
from video_datasets import MSRVTTDataset, TRECVID2018Dataset
from visual_genome_paragraphs import VisualGenomeIM2PDataset
from visual_genome_regions import VisualGenomeRegionsDataset

__all__ = ["CaptionDataset", "CocoDataset", "GenericDataset", "ImageItem", "join_datasets", "open_dataset"]
__all__ += ["some", "warn"]


class CocoDataset(CaptionDataset):
    """COCO's JSON: `images[].id/file_name` and `annotations[].image_id/caption`. A file without annotations is fine.

    Captions of unknown images and blank ones are left out and counted in one warning. Raises UserError naming the
    file, and the place in it, for anything malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path = self.require_caption_path()
        if params.subset:
            warn(f"[{self.name}] sets subset = {params.subset}, which CocoDataset does not know")
        data = read_json(path, f"--dataset {self.name}")
        if not isinstance(data, dict) or "images" not in data:
            raise UserError(f"{path} is not in COCO's format: it has no 'images'")
        by_id = {}
        for place, image in checked_entries(data["images"], path, "images", id=ID, file_name=TEXT):
            if not image["file_name"]:
                raise UserError(f"{path}: {place}: file_name is empty")
            if image["id"] in by_id:
                raise UserError(f"{path}: {place}: id {image['id']!r} is there already")
            by_id[image["id"]] = ImageItem(image["id"], image["file_name"], self.image_path(image["file_name"]))
        self.items = list(by_id.values())
        entries = checked_entries(data.get("annotations", []), path, "annotations", image_id=ID, caption=TEXT)
        self.add_captions(path, by_id, ((entry["image_id"], entry["caption"]) for _, entry in entries))


class GenericDataset(CaptionDataset):
    """Images without captions: the files given, then those of the folder given or of the section's `image_dir`.

    `image_id` is the path as given, or the name within the folder; `key` is the file name. With `subset`, a text file
    with a name a line, only these images of the folder. Files that do not exist are kept, for the loader to name them.
    """

    def __init__(
        self,
        params: DatasetParams | None = None,
        *,
        files: Iterable = (),
        image_dir: str | None = None,
        recursive: bool = False,
    ):
        super().__init__(params or DatasetParams("generic", "GenericDataset"))
        self.image_dir = str(image_dir) if image_dir else self.image_dir
        self.items = [ImageItem(str(path), os.path.basename(path), str(path)) for path in map(str, files)]
        if self.params.subset:
            self._add_listed(self.params.path(self.params.subset))
        elif self.image_dir:
            paths = list_images(self.image_dir, recursive)
            if not paths and not self.items:
                raise UserError(f"no images in {self.image_dir}" + ("" if recursive else " (subfolders are left out)"))
            names = [path.relative_to(self.image_dir).as_posix() for path in paths]
            self.items += [ImageItem(name, path.name, str(path)) for name, path in zip(names, paths)]
        if not self.items:
            raise UserError(f"--dataset {self.name}: no images: give files or a folder")

    def _add_listed(self, path: str) -> None:
        """The images that the lines of a text file name; blank lines and those that begin with # are passed over."""
        if not self.image_dir:
            where = self.params.config_path
            raise UserError(f"--dataset {self.name}: set image_dir in {where}: subset lists its images")
        seen: dict[str, int] = {}
        for number, line in enumerate(read_lines(path, f"--dataset {self.name}"), 1):
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            if "\0" in name or os.path.isabs(name):
                raise UserError(f"{path}, line {number}: {name[:60]!r} is not the name of an image within image_dir")
            if name in seen:
                raise UserError(f"{path}, line {number}: {name!r} is on line {seen[name]} already")
            seen[name] = number
            self.items.append(ImageItem(name, os.path.basename(name), self.image_path(name)))


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
    )
}


def open_dataset(spec: str, config_file: str | None = None) -> CaptionDataset:
    """The dataset `spec` of datasets.conf, "a:x+b:y" joined into one.

    Raises UserError for whatever is wrong with the configuration or a caption file.
    """
    parts = []
    for params in get_datasets(spec, config_file):
        kind = DATASET_CLASSES.get(params.dataset_class)
        if kind is None:
            known = ", ".join(DATASET_CLASSES)
            raise UserError(
                f"{params.config_path}: [{params.name}] unknown dataset_class {params.dataset_class!r}; known: {known}"
            )
        parts.append(kind(params))
    return join_datasets(parts)


def join_datasets(parts: list[CaptionDataset]) -> CaptionDataset:
    """One dataset of all items of `parts`, which remember where they come from."""
    if len(parts) == 1:
        return parts[0]
    joined = CaptionDataset(replace(parts[0].params, name="+".join(part.name for part in parts)))
    joined.parts = parts
    for number, part in enumerate(parts):
        for item in part.items:
            item.part = number
            for photo in item.photos:
                photo.part = number
        joined.items += part.items
    return joined
