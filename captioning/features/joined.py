"""Feature files made of others: a list of PicSOM files joined end to end, and one mean record for every key."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from captioning.errors import UserError
from captioning.features.base import FeatureReader, RowReader
from captioning.features.picsom_file import BinReader
from captioning.features.places import is_there, mean_path
from captioning.files import read_lines


def open_or_mean(path: Path, kind: Callable[..., FeatureReader], *arguments) -> FeatureReader:
    """`kind(path, *arguments)`, or the mean file beside it, of the same kind. Raises UserError where neither exists."""
    if path.exists():
        return kind(path, *arguments)
    if is_there(path):
        return MeanReader(kind(mean_path(path), None))
    raise UserError(f"no such feature file: {path}")


class MeanReader(FeatureReader):
    """`X-mean.EXT`: its one record stands for every key."""

    def __init__(self, reader: FeatureReader):
        super().__init__(reader.path)
        if len(reader) != 1:
            raise UserError(f"feature file {reader.path} should hold one record, the mean, but has {len(reader)}")
        self.shape, self.dtype, self.provenance = reader.shape, reader.dtype, reader.provenance
        self._mean = reader[0] if isinstance(reader, RowReader) else reader[next(reader.keys())]

    def __len__(self) -> int:
        return 1

    def keys(self) -> Iterator[str]:
        return iter(())

    def missing(self, keys: Iterable) -> list:
        return []

    def get_many(self, keys: Sequence) -> np.ndarray:
        return np.repeat(self._mean[None], len(keys), axis=0)


class ListReader(FeatureReader):
    """`.txt`: PicSOM files, one a line (relative to the list's folder), whose vectors are joined end to end."""

    def __init__(self, path: Path, keys: Sequence[str] | None = None, labels: dict[str, int] | None = None):
        super().__init__(path)
        names = [name for line in read_lines(path, "feature list") if (name := line.split("#")[0].strip())]
        if not names:
            raise UserError(f"feature list {path} names no files")
        for name in names:
            if not name.endswith(".bin"):
                raise UserError(f"feature list {path}: {name!r} is no PicSOM file (.bin)")
        self.parts = [open_or_mean((path.parent / name).expanduser(), BinReader, keys, labels) for name in names]
        self.shape = (sum(part.shape[0] for part in self.parts),)
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return max(map(len, self.parts))

    def keys(self) -> Iterator[str]:
        lists = [list(part.keys()) for part in self.parts if not isinstance(part, MeanReader)]
        return iter([key for key in (lists or [[]])[0] if not any(part.missing([key]) for part in self.parts)])

    def missing(self, keys: Iterable) -> list:
        keys = list(keys)
        absent: set = set()
        for part in self.parts:
            picked = part.pick(keys)
            lacking = set(part.missing(picked))
            absent.update(key for key, own in zip(keys, picked) if own in lacking)
        return [key for key in keys if key in absent]

    def pick(self, keys: Sequence) -> Sequence:
        return keys  # each part picks its own

    def get_many(self, keys: Sequence) -> np.ndarray:
        return np.concatenate([part.get_many(part.pick(keys)) for part in self.parts], axis=1)

    def no_record(self, key) -> UserError:
        return super().no_record(key[0] if isinstance(key, tuple) else key)
