"""What every dataset class is made of: images with captions, and checks of the files they are read from."""

import os
from collections.abc import Iterable, Iterator

from captioning.datasets.config import DatasetParams
from captioning.datasets.items import ImageItem, Items, packed
from captioning.errors import UserError, first_few, warn
from captioning.files import read_json
from captioning.images.kinds import EXTENSIONS
from captioning.images.listing import list_images
from captioning.images.zip_file import is_zip
from captioning.text.cleaning import can_be_a_name, clean_caption, has_marks, id_text


def image_key(item: ImageItem) -> tuple:
    """What tells the images of a joined dataset apart."""
    return item.part, item.image_id


def shared_ids(dataset: "CaptionDataset") -> list[int | str]:
    """The ids, compared as texts, that are in several parts of a joined dataset, and so name several images."""
    parts: dict[str, int] = {}
    shared: dict[str, int | str] = {}
    for image_id, part in zip(dataset.items.image_ids(), dataset.items.parts()):
        key = id_text(image_id)
        if parts.setdefault(key, part) != part:
            shared[key] = image_id
    return list(shared.values())


class CaptionDataset:
    """Images with captions.

    name: as in `--dataset`; items: the images, any iterable of them when they are set; image_dir, caption_path,
    features_path: where things lie, if known; parts: the datasets that this one joins, or itself; labels: label ->
    record number in feature files that do not name their records (PicSOM's), else None; keys_are_rows: whether keys are
    numbers of rows in feature files without names; in_shards: whether the images lie in tar shards; damaged: a line for
    all that could not be read of these.
    """

    keys_are_rows = False
    in_shards = False

    def __init__(self, params: DatasetParams):
        self.name = params.name
        self.params = params
        self.image_dir = params.image_dir
        self.caption_path = params.caption_path
        self.features_path = params.features_path
        self.items = Items()
        self.parts: list[CaptionDataset] = [self]
        self.labels: dict[str, int] | None = None
        self.damaged: list[str] = []

    @property
    def items(self) -> Items:
        return self._items

    @items.setter
    def items(self, items: Iterable[ImageItem]) -> None:
        self._items = packed(items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_captions(self) -> int:
        return self.items.num_captions

    def captions(self) -> Iterator[str]:
        """All captions, in order."""
        return self.items.captions()

    def photos(self) -> Items:
        """What feature files have a record for: the items, or instead of stories their photos, each once."""
        if not self.items.have_photos:
            return self.items
        every = (photo for item in self.items for photo in item.photos or (item,))
        return Items({(photo.part, photo.key): photo for photo in every}.values())

    @staticmethod
    def old_key(key: str) -> str:
        """The key in feature files that were made for DeepCaption, tried where `key` has no record."""
        return key

    def require_captions(self, purpose: str = "training") -> None:
        """Raises UserError naming the dataset and its file where there is not a single caption."""
        if not self.num_captions:
            files = ", ".join(str(part.caption_path) for part in self.parts if part.caption_path) or "no caption_path"
            raise UserError(f"--dataset {self.name}: there are no captions ({files}), which {purpose} needs")

    def require_images(self) -> None:
        """Raises UserError where a folder of images, or a zip file of them, is not known or not there."""
        for part in self.parts:
            part.require_own_images()

    def require_own_images(self) -> None:
        """Raises UserError as `require_images` does, for this dataset alone, not for those that it joins."""
        if self.items.lack_paths:
            raise UserError(f"--dataset {self.name}: set image_dir in {self.params.config_path}: pixels are needed")
        if self.image_dir is not None and not os.path.isdir(self.image_dir) and not is_zip(self.image_dir):
            raise UserError(f"--dataset {self.name}: no such image folder: {self.image_dir}")

    def bad_line(self, bad: Iterable[str], what: str) -> str:
        """How many images `what` ("images could not be read"), and how many places in tar shards are damaged.

        bad: the messages of a Loader. Gives "" where there are none.
        """
        messages, damaged = set(bad), set(self.damaged)
        images, places = len(messages - damaged), len(messages & damaged)
        lines = [f"{images} {what}"] if images else []
        return ", ".join(lines + ([f"{places} places in shards are damaged or left out"] if places else []))

    # ---- for the classes of the formats ----

    def require_caption_path(self) -> str:
        if not self.caption_path:
            raise UserError(f"--dataset {self.name}: set caption_path in {self.params.config_path}")
        return self.caption_path

    def read_captions_file(self, key: str, whose: str) -> tuple[str, dict]:
        """(caption_path, the JSON object in it). Raises UserError where it lacks `key`, a list in `whose` format."""
        path = self.require_caption_path()
        data = read_json(path, f"--dataset {self.name}")
        if not isinstance(data, dict) or key not in data:
            raise UserError(f"{path} is not in {whose} format: it has no {key!r}")
        if not isinstance(data[key], list):
            raise UserError(f"{path}: {key} is not a list")
        return path, data

    def image_path(self, name: str) -> str | None:
        return os.path.join(self.image_dir, name) if self.image_dir else None


def add_captions(source, by_id: dict, captions: Iterable[tuple[object, str]], what: str = "images") -> None:
    """Give each of (id, caption), cleaned, to the item that `by_id` has for the id.

    Captions of ids that are not there and blank captions are left out, <start>, <end> and <pad> are taken out; each is
    counted in one warning, which names the file `source`. An id whose item is None is known, but not asked for.
    """
    unknown, cleaner = [], CaptionCleaner(source)
    for item_id, caption in captions:
        if item_id not in by_id:
            unknown.append(item_id)
        elif (text := cleaner.clean(caption)) and (item := by_id[item_id]) is not None:
            item.captions.append(text)
    if unknown:
        warn(f"{source}: {len(unknown)} captions left out, their {what} are not listed: {first_few(unknown)}")
    cleaner.report()


class CaptionCleaner:
    """Cleans the captions of the file `source`; counts blank ones, and those that say <start>, <end> or <pad>."""

    def __init__(self, source, what: str = "captions"):
        self.source, self.what, self.blank, self.marked = source, what, [], 0

    def clean(self, caption: str, owner: object = None) -> str:
        """The caption as clean_caption() gives it; empty for a blank one. owner: whose it is, for the report."""
        self.marked += has_marks(caption)
        text = clean_caption(caption)
        if text and not text.isspace():
            return text
        self.blank.append(owner)
        return ""

    def report(self) -> None:
        """Warn of what was found."""
        if self.marked:
            warn(f"{self.source}: <start>, <end> and <pad> are taken out of {self.marked} {self.what}")
        if self.blank:
            whose = "" if self.blank[0] is None else f", of images {first_few(self.blank)}"
            warn(f"{self.source}: {len(self.blank)} blank {self.what} left out{whose}")


ID = (int, str)
TEXT = (str,)
NAME = (str, "of a file")
NUMBER = (int, float)
LARGEST = 1e12  # pixels; larger numbers are no places in an image
_NAMES = {ID: "neither number nor text", TEXT: "not a text", NAME: "not the name of a file", NUMBER: "not a number"}


def checked_entries(entries, path, name: str, **kinds: tuple) -> Iterator[tuple[str, dict]]:
    """("images[3]", entry) for each of a JSON list of objects, all keys of `kinds` being there and of that kind.

    name: the place of the list in the file. Raises UserError naming the file and the place.
    """
    if not isinstance(entries, list):
        raise UserError(f"{path}: {name or 'the file'} is not a list")
    for i, entry in enumerate(entries):
        place = f"{name}[{i}]"
        check_entry(entry, path, place, **kinds)
        yield place, entry


def check_entry(entry, path, place: str, **kinds: tuple) -> None:
    """Raises UserError where `entry` is no object with a value of each of `kinds` under its key."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {place} is not an object but {str(entry)[:40]!r}")
    for key, kind in kinds.items():
        if key not in entry:
            raise UserError(f"{path}: {place} has no {key!r}: is this a file of captions?")
        if entry[key] == "" and kind is not TEXT:
            raise UserError(f"{path}: {place}: {key} is empty")
        if not is_a(entry[key], kind):
            raise UserError(f"{path}: {place}: {key} {repr(entry[key])[:60]} is {_NAMES[kind]}")


def is_a(value, kind: tuple) -> bool:
    """Whether a value of a JSON file is of a kind: ID, TEXT, NAME or NUMBER."""
    if type(value) not in kind:
        return False
    if kind is NUMBER:
        return -LARGEST < value < LARGEST  # neither NaN nor infinite
    return kind is TEXT or type(value) is int or can_be_a_name(value)  # ids become names of files and keys


class ImageFinder:
    """Finds the file of an image whose name is known without its extension, in a folder or a zip file listed once.

    image_dir None: every file is None.
    """

    def __init__(self, image_dir: str | None):
        self.image_dir = image_dir
        self.names: set[str] = set()
        if image_dir and (os.path.isdir(image_dir) or is_zip(image_dir)):
            self.names = {os.path.relpath(path, image_dir) for path in list_images(image_dir)}

    def path(self, *stems: str) -> str | None:
        """The file of the first of `stems` that is there, with any extension; else of the first, as .jpg."""
        if self.image_dir is None:
            return None
        for stem in stems:
            for name in (stem, *(stem + extension for extension in EXTENSIONS)):
                if name in self.names:
                    return os.path.join(self.image_dir, name)
        name = stems[0] if stems[0].lower().endswith(EXTENSIONS) else stems[0] + ".jpg"
        return os.path.join(self.image_dir, name)
