"""What a batch reads from feature files: rows by image, of a dataset's files or of a cache of an encoder's output.

Shapes: B images, D feature size, R = h * w regions of a map.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from captioning.config import is_shape
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.items import Items, packed
from captioning.errors import UserError, first_few, note_once, warn
from captioning.features.base import FeatureReader, RowReader
from captioning.features.factory import open_features
from captioning.features.lmdb_file import LmdbReader
from captioning.features.places import require_feature_file
from captioning.features.regions import FolderReader, padded


class FeatureFiles:
    """One name of a feature file: the file of that name of each part of a dataset, looked up in its features_path.

    shape, dtype: of a record; provenance: what made the file, or None. A record of regions (R, D), of objects for
    instance, counts as a map (D, R, 1). Raises UserError where a file is missing, its records are of another shape, or
    the parts' files do not fit together.
    """

    def __init__(self, dataset: CaptionDataset, name: str, flag: str = "--features"):
        """flag: the one that names the file, for errors."""
        self.name = name
        self.readers: list[FeatureReader] = []
        self.absent: set[tuple[int, str]] = set()  # (part, key) of photos of stories that have no record
        self.old_keys = [part.old_key for part in dataset.parts]
        self.renamed: dict[tuple[int, str], str] = {}  # (part, key) -> DeepCaption's key, where that one has the record
        for part in dataset.parts:
            path = require_feature_file(part, name)
            keys = None if part.keys_are_rows else part.photos().feature_keys()
            try:
                reader = open_features(path, keys, part.labels)
            except UserError as error:
                raise UserError(f"--dataset {part.name}: {error}") from None
            if isinstance(reader, RowReader) and reader.row_rule:
                note_once(f"{reader.path}: its rows have no names: {reader.row_rule}")
            if isinstance(reader, FolderReader) and reader.suffix == ".npz":
                file = shlex.join(["--convert", str(path), "--output_file", f"{reader.path}.lmdb"])
                note_once(f"{path}: one file is read faster than a file for each image: ./extract_features.py {file}")
            self.readers.append(reader)
        first = self.readers[0]
        self.shape, self.provenance = as_map(first.shape), first.provenance
        if not is_shape(self.shape):
            wanted = "a vector (D,), regions (R, D) or a map (D, h, w)"
            raise UserError(f"{flag} {name}: the records of {first.path} have shape {first.shape}; use {wanted}")
        self.dtype = np.result_type(*(reader.dtype for reader in self.readers))
        if self.dtype not in (np.float16, np.float32):
            self.dtype = np.dtype(np.float32)
        for reader in self.readers[1:]:
            if reader.shape != first.shape:
                raise UserError(f"{first.path} has features of shape {first.shape}, {reader.path} of {reader.shape}")
            if reader.provenance and first.provenance and reader.provenance != first.provenance:
                raise UserError(f"{first.path} and {reader.path} were made by different extractors")

    def check(self, items: Iterable[ImageItem]) -> None:
        """Raises UserError naming a key and the file where an item has no record, or a story none for any photo.

        A story's photos without a record are left out of its mean, and counted in a warning.
        """
        items = packed(items)
        if self.shape[1:] == (0, 1) and items.have_photos:
            raise UserError(f"{self.name}: stories need features of the same shape for all photos")
        for part, reader in enumerate(self.readers):
            own = items.of_part(part)
            lacking = self._lacking(reader, own)
            lacking -= self._rename(part, lacking)
            if not lacking:
                continue
            lost = [item for item in own if all(photo.key in lacking for photo in item.photos or (item,))]
            if lost:
                more = f" (and {len(lost) - 1} other images of the dataset)" if len(lost) > 1 else ""
                first = lost[0].photos[0] if lost[0].photos else lost[0]
                raise UserError(f"{reader.no_record(first.key)}{more}")
            self.absent |= {(part, key) for key in lacking}
            what = f"{len(lacking)} photos of stories, which go on without them"
            warn(f"feature file {reader.path} has no record for {what}: {first_few(sorted(lacking))}")

    @staticmethod
    def _lacking(reader: FeatureReader, items: Items) -> set[str]:
        """The keys of the items, of stories those of their photos, that have no record."""
        if not items.have_photos and not items.have_other_keys:
            return set(reader.missing(items.feature_keys()))
        photos = [photo for item in items for photo in item.photos or (item,)]
        picked = reader.pick([alternatives(photo) for photo in photos])
        absent = set(reader.missing(picked))
        return {photo.key for photo, key in zip(photos, picked) if key in absent}

    def _rename(self, part: int, lacking: set[str]) -> set[str]:
        """Those of the keys `lacking` that have a record under another name, which is noted in `renamed`.

        That is the name that DeepCaption gave it, the key without its extension, or the image's number, by which
        bottom-up features go. A name that would do for several keys is none for any of them.
        """
        reader, found = self.readers[part], {}
        if not lacking or isinstance(reader, RowReader) and reader.row_rule:
            return set()
        ways = (
            (self.old_keys[part], "DeepCaption's names"),
            (lambda key: Path(key).stem, "the images' names without extensions"),
            (number_of, "the images' numbers"),
        )
        for name_of, whose in ways:
            names = {key: name_of(key) for key in lacking - found.keys()}
            counts = Counter(names.values())
            others = {key: name for key, name in names.items() if name not in ("", key) and counts[name] == 1}
            absent = set(reader.missing(list(others.values()))) if others else set()
            own = {key: name for key, name in others.items() if name not in absent}
            if own:
                key = min(own)
                note_once(f"{reader.path}: records have {whose}, as {own[key]!r} for {key!r} ({len(own)} in all)")
            found |= own
        self.renamed |= {(part, key): name for key, name in found.items()}
        return set(found)

    def get(self, items: Sequence[ImageItem]) -> torch.Tensor:
        """(B, D), or (B, R, D) where a record is a map (D, h, w); R = h * w. float16 stays so.

        Of a story the mean over its photos.
        """
        if any(item.photos for item in items):
            several = [
                [photo for photo in item.photos or (item,) if (item.part, photo.key) not in self.absent]
                for item in items
            ]
            records = self._records([photo for photos in several for photo in photos])
            ends = np.cumsum([len(photos) for photos in several])
            means = [rows.mean(0, np.float32) for rows in np.split(records, ends[:-1])]
            out = np.stack(means).astype(self.dtype, copy=False)
        else:
            out = self._records(items)
        if out.ndim == 4:  # by numpy: torch would start threads of its own for it in the thread that makes batches
            out = np.ascontiguousarray(out.reshape(*out.shape[:2], -1).transpose(0, 2, 1))
        return torch.from_numpy(out)

    def _records(self, items: Sequence[ImageItem]) -> np.ndarray:
        """(len(items), *shape)"""
        if len(self.readers) == 1 or len({item.part for item in items}) == 1:
            out = self._read(self.readers[items[0].part], items)
        elif self.shape[1:] == (0, 1):
            rows = [self._read(self.readers[item.part], [item])[0] for item in items]
            out = padded(rows, self.shape[0], self.dtype)
        else:
            out = np.empty((len(items), *self.readers[0].shape), self.dtype)
            for part, reader in enumerate(self.readers):
                rows = [row for row, item in enumerate(items) if item.part == part]
                if rows:
                    out[rows] = self._read(reader, [items[row] for row in rows])
        return out.astype(self.dtype, copy=False)

    def _read(self, reader: FeatureReader, items: Sequence[ImageItem]) -> np.ndarray:
        keys = [alternatives(item) for item in items]
        if self.renamed:
            keys = [self.renamed.get((item.part, item.key), key) for item, key in zip(items, keys)]
        return reader.get_many(reader.pick(keys))


class CachedFeatures:
    """What an encoder made of images, from a cache file; called in the way of FeatureFiles.

    name: of the encoder; path: of the cache file, to which other processes may be adding; keys: `pixels_of` an item ->
    key in the file, of the items that have a record.
    """

    def __init__(self, name: str, path: Path, keys: dict[tuple, str]):
        self.name, self.keys = name, keys
        self.reader = LmdbReader(path, shared=True)
        self.shape, self.dtype, self.provenance = self.reader.shape, self.reader.dtype, self.reader.provenance

    def __contains__(self, item: ImageItem) -> bool:
        return pixels_of(item) in self.keys

    def check(self, items: Iterable[ImageItem]) -> None:
        """Raises UserError naming an image that has no record."""
        for item in items:
            if item not in self:
                raise UserError(f"--cache_features: {self.reader.path} has no record of {item.path}")

    def get(self, items: Sequence[ImageItem]) -> torch.Tensor:
        """(B, D) float32 or (B, R, D) float16."""
        return torch.from_numpy(self.reader.get_many([self.keys[pixels_of(item)] for item in items]))


def as_map(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (D, R, 1) of a map instead of that of regions (R, D); any other as it is."""
    return (shape[1], shape[0], 1) if len(shape) == 2 else shape  # of any number of regions (0, D) -> (D, 0, 1)


def pixels_of(item: ImageItem) -> tuple:
    """Tells items apart that have other pixels: by path and box, a story by its first photo and its id.

    A story keeps both where some of its photos are missing.
    """
    return item.path, ("story", item.image_id) if item.photos else item.box


def number_of(key) -> str:
    """The number that a key ends in, its extension aside, as bottom-up features name images; "" where it has none.

    391895 of COCO_val2014_000000391895.jpg.
    """
    stem = Path(str(key)).stem
    return stem[len(stem.rstrip("0123456789")) :].lstrip("0")


def alternatives(item: ImageItem) -> str | tuple[str, ...]:
    """The key of an item in feature files, or the keys to be tried in turn."""
    return (item.key, *item.other_keys) if item.other_keys else item.key
