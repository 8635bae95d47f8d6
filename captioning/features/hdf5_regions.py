"""Regions in HDF5: `.h5` with a dataset (R, D) for each image, R of its own, instead of one dataset `data`.

The datasets are called ID, or ID_features, as in the files of Cornia et al. 2020, whose others (ID_boxes) are left out.
ID is the key of an image.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from captioning.config import MOST_NUMBERS
from captioning.errors import UserError
from captioning.features.base import FeatureReader
from captioning.features.handles import handle, handles_lock, naming
from captioning.features.hdf5_file import H5Reader, check_chunk, check_data, h5py
from captioning.features.regions import padded, require_alike
from captioning.files import require_plain_file

SUFFIX = "_features"


def open_h5(path: Path, keys: Sequence[str] | None = None) -> FeatureReader:
    """The reader of an `.h5` file: of its rows where it has a dataset `data`, else of a dataset for each image."""
    with naming(path):
        require_plain_file(path, "feature file")
        with h5py().File(path, "r") as file:
            in_rows = file.get("data", getlink=True) is not None or len(file) < 2
    return H5Reader(path, keys) if in_rows else H5Regions(path)


class H5Regions(FeatureReader):
    """A dataset (R, D) of numbers for each image; records of several images are padded. shape: (0, D)."""

    def __init__(self, path: Path):
        super().__init__(path)
        name = next(iter(self._names.values()), None)
        if name is None:
            raise UserError(f"feature file {path} has neither a dataset 'data' nor one for each image")
        with naming(path), handles_lock:
            first = self._read(name)
        self.shape, self.dtype = (0, first.shape[1]), first.dtype

    def _file(self):
        """The HDF5 file. Call under handles_lock."""
        return handle(self.path, lambda: h5py().File(self.path, "r"))

    @cached_property
    def _names(self) -> dict[str, str]:
        """ID -> dataset, of all images."""
        with naming(self.path), handles_lock:
            names = list(self._file())
        ended = {name.removesuffix(SUFFIX): name for name in names if name.endswith(SUFFIX)}
        return ended or {name: name for name in names}

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> Iterator[str]:
        return iter(self._names)

    def missing(self, keys: Iterable) -> list:
        return [key for key in keys if str(key) not in self._names]

    def get_many(self, keys: Sequence) -> np.ndarray:
        records = []
        with naming(self.path), handles_lock:
            for key in keys:
                name = self._names.get(str(key))
                if name is None:
                    raise self.no_record(key)
                record = self._read(name)
                require_alike(record, self.shape, self.dtype, f"feature file {self.path}: {name!r}")
                records.append(record)
        return self.finite(padded(records, self.shape[1], self.dtype), keys)

    def _read(self, name: str) -> np.ndarray:
        """The dataset `name`, (R, D) floats. Raises ValueError where it is no such dataset, or unpacks to any size."""
        file = self._file()
        check_data(file, name)
        data = file[name]
        if data.dtype.kind not in "fiu" or data.ndim != 2 or not 0 < data.size <= MOST_NUMBERS:
            raise ValueError(f"{name!r} in it holds {data.dtype} of shape {data.shape}, no regions (R, D)")
        if data.chunks:
            for corner in itertools.product(*(range(0, size, step) for size, step in zip(data.shape, data.chunks))):
                check_chunk(data, corner)
        return data[()].astype(data.dtype if data.dtype.kind == "f" else np.float32, copy=False)
