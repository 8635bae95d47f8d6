"""A dataset in one file or folder of captions, whose layout is recognised: people's own data."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from captioning.datasets.base import CaptionCleaner, CaptionDataset, ImageItem
from captioning.datasets.config import DatasetParams
from captioning.datasets.layouts.layout import Layout, Photo, base_name, split_name
from captioning.datasets.layouts.reading import read_layout
from captioning.datasets.splits import SHARES, split_of
from captioning.errors import UserError, first_few, note_once, warn
from captioning.images.image_file import image_exists
from captioning.images.kinds import is_image_name
from captioning.images.zip_file import is_zip, open_zip

SAMPLE = 50  # names by which the folders of the images are found
# names of folders of images: images, train_images, Flicker8k_Dataset, images_256x256
OF_IMAGES = re.compile(r"(?:.*[_\W\d])?(?:image|img|photo|picture|pic|jpe?g|dataset)s?(?:[_-]?\d+(?:x\d+)?)?", re.I)
FEW_CAPTIONS = {2_000: 1, 15_000: 2}  # with fewer captions than this: how often a word must occur
MOST_FOLDERS = 200  # that are looked into


class CaptionFile(CaptionDataset):
    """The images and captions of `caption_path`: a file, or a folder, of a layout that read_layout() knows.

    Images are in the order of their names, whatever the order of rows; captions of an image keep theirs. `subset` is a
    split: one that the file has, else train, val or test by a hash of the image's name. Images are looked for in
    image_dir, without it beside the file, in the folders there, and in those beside its folder. A line says what was
    found. Raises UserError for what cannot be read, and for a split that is not there.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        if not self.caption_path and params.extra.get("captions_path"):
            self.caption_path = params.path(params.extra["captions_path"])
        source = f"{params.option} {self.name}"
        layout = read_layout(self.require_caption_path(), source)
        photos, self.about_splits = photos_of_split(layout, params.subset, source)
        photos.sort(key=lambda photo: photo.name)
        self.finder = PhotoFinder([photo.name for photo in photos], layout, self.image_dir)
        self.image_dir = self.finder.folders[0]
        for photo, texts in cleaned(photos, layout.path):
            self.items.append(ImageItem(photo.image_id, photo.name, self.finder.path(photo.name), texts))
        if layout.unused:
            warn(f"{layout.path}: {len(layout.unused)} entries left out: {first_few(layout.unused)}")
        note_once(self.about(layout))

    def about(self, layout: Layout) -> str:
        """A line that says what was recognised."""
        folders = self.finder.folders
        where = f"images in {first_few(folders)}" if self.finder.found else "the images were not found"
        notes = [*layout.notes, *filter(None, [self.about_splits]), where]
        captions = f"{len(self.items):,} images, {self.num_captions:,} captions"
        return f"{self.name}: {layout.kind}: {'; '.join([captions, *notes])}"

    def require_own_images(self) -> None:
        super().require_own_images()
        if not self.finder.found:
            looked = first_few(self.finder.looked_in)
            what = f"none of its {len(self.items)} images is in {looked}"
            raise UserError(f"{self.params.option} {self.name}: {what}: say where they are with --images DIR")


def cleaned(photos: Iterable[Photo], source: str) -> Iterator[tuple[Photo, list[str]]]:
    """Each photo with its captions, clean and without blank ones, of which a warning that names `source` tells."""
    cleaner = CaptionCleaner(source)
    for photo in photos:
        texts = [cleaner.clean(text.strip(), photo.name) for text, _ in photo.captions]
        yield photo, [text for text in texts if text]
    cleaner.report()


def suitable_threshold(dataset: CaptionDataset, tell: bool = True) -> int:
    """How often a word must occur to be kept where nobody says so: 4; with few captions of people's own 1 or 2.

    tell: print a line about the latter.
    """
    own = all(isinstance(part, CaptionFile) for part in dataset.parts)
    count = dataset.num_captions
    threshold = next((n for most, n in FEW_CAPTIONS.items() if own and count < most), 4)
    if tell and threshold < 4:
        kept = "every word is kept" if threshold == 1 else f"words that occur {threshold} times or more are kept"
        note_once(f"vocabulary: {kept}, because {count:,} captions are few (--vocab_threshold changes it)")
    return threshold


def photos_of_split(layout: Layout, split: str | None, source: str) -> tuple[list[Photo], str]:
    """The images of a split of `layout`, all where it is None, and a few words on its splits.

    source: the flag and the name of the dataset, for errors. Raises UserError where the layout has no such split, and
    where it has no image.
    """
    splits = layout.splits()
    told = ", ".join(f"{one} {count:,}" for one, count in splits.items())
    wanted = split_name(split)
    if not wanted:
        return merged(layout.photos.values()), f"all splits together ({told})" if splits else ""
    if splits:
        if wanted not in splits:
            raise UserError(f"{source}: {layout.path} has no split {split!r}; it has {told}")
        photos = [photo for photo in layout.photos.values() if photo.split == wanted]
        words = f"split {wanted} of {told}"
        if wanted == "train" and "restval" in splits:
            words += "; restval is not part of it, add +PATH:restval for the usual training set"
        return merged(photos), words
    if wanted not in SHARES:
        hint = "train, val and test are made by a hash of the names"
        raise UserError(f"{source}: {layout.path} has no splits, so there is no {split!r}; {hint}")
    photos = [photo for photo in layout.photos.values() if split_of(photo.name) == wanted]
    if not photos:
        few = f"none of its {len(layout.photos)} images falls to {wanted} by the hash of its name"
        raise UserError(f"{source}: {few}: train with --val_fraction instead")
    return merged(photos), f"{wanted} by a hash of the names ({SHARES[wanted]:.0%})"


def merged(photos: Iterable[Photo]) -> list[Photo]:
    """The photos; one that stands in several splits is there once, with all captions."""
    found: dict[object, Photo] = {}
    for photo in photos:
        first = found.setdefault(photo.image_id, photo)
        if first is not photo:
            first.captions = first.captions + photo.captions
    return list(found.values())


# ---- where the images are ----


class PhotoFinder:
    """Finds the files of images by the names that a layout has for them.

    folders: where they are, that with the most of them first; found: whether any was found; looked_in: the folders in
    and below which they were looked for. A name may lack its extension, or have folders of another machine in front.
    """

    def __init__(self, names: Sequence[str], layout: Layout, image_dir: str | None):
        self.paths: dict[str, str] = {}
        self.folders: list[str] = []
        self.looked_in: list[str] = []
        # images of annotations/captions.json may lie in the folder images beside annotations
        beside = layout.folder or (layout.path if os.path.isdir(layout.path) else os.path.dirname(layout.path)) or "."
        roots = [image_dir] if image_dir else [beside] if layout.folder else [beside, os.path.join(beside, os.pardir)]
        for root in map(os.path.normpath, roots):
            if not self.paths:
                self.looked_in.append(root)
                places = [Place(root), *map(Place, places_in(root))]
                if root != self.looked_in[0]:
                    places = [place for place in places if of_images(os.path.relpath(place.path, root))]
                self._look(names, places, loosely=False)
                if not self.paths:
                    self._look(names, places, loosely=True)
        self.found = bool(self.paths)
        self.folders = self.folders or [image_dir or beside]

    def _look(self, names: Sequence[str], places: list["Place"], loosely: bool) -> None:
        """Add the files that are in `places`: first those of the place that has the most of them."""
        left, places = [name for name in names if name not in self.paths], list(places)
        while left and places:
            sample = left[:: max(1, len(left) // SAMPLE)]
            hits = [sum(place.find(name, loosely) is not None for name in sample) for place in places]
            if not any(hits):
                return
            place = places.pop(hits.index(max(hits)))
            self.folders.append(place.path)
            found = {name: place.find(name, loosely) for name in left}
            self.paths |= {name: path for name, path in found.items() if path is not None}
            left = [name for name in left if found[name] is None]

    def path(self, name: str) -> str:
        """The file of an image; where it should be if it is not there."""
        return self.paths.get(name) or os.path.join(self.folders[0], name)


class Place:
    """A folder, or a zip file, in which images are looked for."""

    def __init__(self, path: str):
        self.path = path

    def find(self, name: str, loosely: bool) -> str | None:
        """The file of the image `name`; None where it is not here. loosely: by its name without its folders."""
        if image_exists(path := os.path.join(self.path, name)):
            return path
        base = base_name(name)
        known = self.names.get(base) if loosely or not re.search(r"[/\\]", name) else None
        return os.path.join(self.path, known) if known else None

    @cached_property
    def names(self) -> dict[str, str]:
        """Name of each file, in the form that base_name() gives, with and without extension -> its name on the disk."""
        files = open_zip(self.path).names() if is_zip(self.path) else []
        if os.path.isdir(self.path):
            files = [entry.name for entry in os.scandir(self.path) if not entry.is_dir()]
        found: dict[str, str] = {}
        for file in sorted(filter(is_image_name, files)):
            name = unicodedata.normalize("NFC", os.path.basename(file))
            found[name] = file
            found.setdefault(os.path.splitext(name)[0], file)
        return found


def of_images(path: str) -> bool:
    """Whether the first folder of a path is called as folders of images are."""
    return OF_IMAGES.fullmatch(path.partition(os.sep)[0]) is not None


def places_in(root: str, within: bool = False) -> list[str]:
    """The folders and zip files in the folder `root` in the order of their names, also those in folders of images."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        if not entry.name.startswith(".") and (entry.is_dir() or is_zip(entry.path)):
            found.append(entry.path)
            if entry.is_dir() and of_images(entry.name) and not within:
                found += places_in(entry.path, within=True)
    return found[:MOST_FOLDERS]
