"""Datasets of images and captions, a class per format; no torch. `open_dataset("coco:train2014", None)` reads one.

A class takes the DatasetParams of a section of datasets.conf and fills `items`: all images, in the order of the file,
those without captions too.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from common import UserError, read_json
from dataset_config import DatasetParams, get_datasets
from images import list_images


@dataclass
class ImageItem:
    """An image: its id in results, its key in feature files, its file (None: not known) and its captions."""

    image_id: int | str
    key: str
    path: str | None
    captions: list[str] = field(default_factory=list)
    part: int = 0  # the dataset in `CaptionDataset.parts` that it comes from


class CaptionDataset:
    """Images with captions.

    name: as in `--dataset`; items: the images; image_dir, caption_path, features_path: where things lie, if known;
    parts: the datasets that this one joins, or itself.
    """

    def __init__(self, params: DatasetParams):
        self.name = params.name
        self.params = params
        self.image_dir = params.image_dir
        self.caption_path = params.caption_path
        self.features_path = params.features_path
        self.items: list[ImageItem] = []
        self.parts: list[CaptionDataset] = [self]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_captions(self) -> int:
        return sum(len(item.captions) for item in self.items)

    def captions(self) -> Iterator[str]:
        """All captions, in order."""
        return (caption for item in self.items for caption in item.captions)

    def references(self) -> dict[int | str, list[str]]:
        """image_id -> captions, of the images that have any; for scoring."""
        return {item.image_id: item.captions for item in self.items if item.captions}

    def require_captions(self, purpose: str = "training") -> None:
        """Raises UserError naming the dataset and its file where there is not a single caption."""
        if not any(item.captions for item in self.items):
            files = ", ".join(str(part.caption_path) for part in self.parts if part.caption_path)
            where = files or "it sets no caption_path"
            raise UserError(f"--dataset {self.name}: there are no captions ({where}), which {purpose} needs")

    def require_images(self) -> None:
        """Raises UserError where a folder of images is not known or not there."""
        for part in self.parts:
            if any(item.path is None for item in part.items):
                raise UserError(f"--dataset {part.name}: set image_dir in {part.params.config_path}: pixels are needed")
            if part.image_dir is not None and not os.path.isdir(part.image_dir):
                raise UserError(f"--dataset {part.name}: no such image folder: {part.image_dir}")


class CocoDataset(CaptionDataset):
    """COCO's JSON: `images[].id/file_name` and `annotations[].image_id/caption`. A file without annotations is fine.

    Captions of unknown images and blank ones are left out and counted in one warning. Raises UserError naming the
    file, and the place in it, for anything malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        if not self.caption_path:
            raise UserError(f"--dataset {self.name}: set caption_path in {params.config_path}")
        if params.subset:
            warn(f"[{self.name}] sets subset = {params.subset}, which CocoDataset does not know")
        data = read_json(self.caption_path, f"--dataset {self.name}")
        if not isinstance(data, dict) or "images" not in data:
            raise UserError(f"{self.caption_path} is not in COCO's format: it has no 'images'")
        by_id = {}
        for place, image in self._entries(data, "images", "id", "file_name"):
            name = image["file_name"]
            if not isinstance(name, str) or not name:
                raise UserError(f"{self.caption_path}: {place}: file_name {name!r} is not a name")
            if image["id"] in by_id:
                raise UserError(f"{self.caption_path}: {place}: id {image['id']!r} is there already")
            path = os.path.join(self.image_dir, name) if self.image_dir else None
            by_id[image["id"]] = ImageItem(image["id"], name, path)
        self.items = list(by_id.values())

        unknown, blank = [], 0
        for place, annotation in self._entries(data, "annotations", "image_id", "caption"):
            item, caption = by_id.get(annotation["image_id"]), annotation["caption"]
            if not isinstance(caption, str):
                raise UserError(f"{self.caption_path}: {place}: caption {caption!r} is not a text")
            if item is None:
                unknown.append(annotation["image_id"])
            elif not caption.strip():
                blank += 1
            else:
                item.captions.append(caption)
        if unknown:
            warn(f"{self.caption_path}: {len(unknown)} captions left out, their images are not listed: {some(unknown)}")
        if blank:
            warn(f"{self.caption_path}: {blank} blank captions left out")

    def _entries(self, data: dict, name: str, id_key: str, text_key: str) -> Iterator[tuple[str, dict]]:
        """("images[3]", entry), each entry checked to have both keys and an id that is a number or a text."""
        entries = data.get(name, [])
        if not isinstance(entries, list):
            raise UserError(f"{self.caption_path}: {name} is not a list")
        for i, entry in enumerate(entries):
            place = f"{name}[{i}]"
            if not isinstance(entry, dict):
                raise UserError(f"{self.caption_path}: {place} is not an object but {str(entry)[:40]!r}")
            for key in (id_key, text_key):
                if key not in entry:
                    raise UserError(f"{self.caption_path}: {place} has no {key!r}: is this a file of captions?")
            if type(entry[id_key]) not in (int, str):
                raise UserError(f"{self.caption_path}: {place}: {id_key} {entry[id_key]!r} is neither number nor text")
            yield place, entry


class GenericDataset(CaptionDataset):
    """Images without captions: the files given, then those of the folder given or of the section's `image_dir`.

    `image_id` is the path as given, or the name within the folder; `key` is the file name. Files that do not exist are
    kept, for the loader to name them.
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
        if self.image_dir:
            paths = list_images(self.image_dir, recursive)
            if not paths and not self.items:
                raise UserError(f"no images in {self.image_dir}" + ("" if recursive else " (subfolders are left out)"))
            names = [path.relative_to(self.image_dir).as_posix() for path in paths]
            self.items += [ImageItem(name, path.name, str(path)) for name, path in zip(names, paths)]
        if not self.items:
            raise UserError(f"--dataset {self.name}: no images: give files or a folder")


DATASET_CLASSES = {"CocoDataset": CocoDataset, "GenericDataset": GenericDataset}


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
        joined.items += part.items
    return joined


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def some(names: Iterable, most: int = 3) -> str:
    """The first few of `names`, to be put into a message."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
