"""One feature file in several: `features-{00..15}.lmdb` names features-00.lmdb to features-15.lmdb."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from captioning.errors import UserError, first_few
from captioning.features.base import FeatureReader, RowReader
from captioning.features.regions import padded

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_FILES = 10_000


def shards(path) -> list[Path]:
    """The files that `path` names: those of its range {FIRST..LAST}, the numbers as long as FIRST, else `path` alone.

    Raises UserError for a range that runs backwards or is longer than MOST_FILES.
    """
    found = RANGE.search(Path(path).name)
    if found is None:
        return [Path(path)]
    first, last = found.groups()
    if max(len(first), len(last)) > 9 or not 0 <= int(last) - int(first) < MOST_FILES:
        raise UserError(f"feature file {path}: {found[0]} should run from a number to a larger one")
    before, after = Path(path).name[: found.start()], Path(path).name[found.end() :]
    return [Path(path).with_name(f"{before}{n:0{len(first)}d}{after}") for n in range(int(first), int(last) + 1)]


class ShardsReader(FeatureReader):
    """The records of several feature files of one shape, which name their records; of equal keys the first counts."""

    def __init__(self, path: Path, parts: list[FeatureReader]):
        """Raises UserError for files that do not belong together, or do not name their records."""
        super().__init__(path)
        self.parts, first = parts, parts[0]
        self.shape, self.dtype, self.provenance = first.shape, first.dtype, first.provenance
        for part in parts:
            if isinstance(part, RowReader) and not part.path.with_suffix(".keys.txt").exists():
                raise UserError(f"feature file {path}: {part.path} has no {part.path.stem}.keys.txt to name its rows")
            if (part.shape, part.dtype, part.provenance) != (self.shape, self.dtype, self.provenance):
                what = "other shapes or number types" if part.shape != self.shape else "other makers or number types"
                raise UserError(f"feature file {path}: {part.path} and {first.path} have {what}")
        self._part_of: dict[str, int] = {}  # where keys were found

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def keys(self) -> Iterator[str]:
        return chain.from_iterable(part.keys() for part in self.parts)

    def missing(self, keys: Iterable) -> list:
        keys = list(keys)
        return [key for key, part in zip(keys, self._find(keys)) if part < 0]

    def get_many(self, keys: Sequence) -> np.ndarray:
        places = np.array(self._find(keys), np.int64)
        if len(places) and places.min() < 0:
            raise self.no_record(keys[int(places.argmin())])
        if len(self.shape) == 2 and self.shape[0] == 0:  # of any number of regions
            return padded([self.parts[place][key] for place, key in zip(places, keys)], self.shape[1], self.dtype)
        records = np.empty((len(keys), *self.shape), self.dtype)
        for number in np.unique(places):
            rows = np.flatnonzero(places == number)
            records[rows] = self.parts[number].get_many([keys[row] for row in rows])
        return records

    def _find(self, keys: Sequence) -> list[int]:
        """Which part has each key, -1 for none."""
        left = list(dict.fromkeys(key for key in keys if key not in self._part_of))
        for number, part in enumerate(self.parts):
            if not left:
                break
            absent = part.missing(left)
            there = set(left).difference(absent)
            self._part_of.update(dict.fromkeys(there, number))
            left = absent
        return [self._part_of.get(key, -1) for key in keys]


def require_shards(path) -> None:
    """Raises UserError where a file of the range in `path` is not there."""
    files = shards(path)
    absent = [file.name for file in files if not file.exists()]
    if absent:
        what = f"{len(absent)} of its {len(files)} files are missing"
        raise UserError(f"feature file {path}: {what}: {first_few(absent)}")
