"""Feature files in HDF5: `.h5`, rows in the dataset `data`."""

import json
import os
from functools import cached_property

import numpy as np

from captioning.errors import UserError
from captioning.features.base import RowReader, RowStore, parse_provenance
from captioning.features.handles import handle, handles_lock

HEADERS = 2**16  # bytes, more than those of a file with one dataset


class H5Reader(RowReader):
    """HDF5, dataset `data`, rows as in .npy. It is mapped into memory where it lies in the file in one piece."""

    @cached_property
    def mapped(self) -> np.ndarray | None:
        with handles_lock:
            return self._map(self._file()["data"])

    def _rows(self):
        with handles_lock:
            return self._file()["data"] if self.mapped is None else self.mapped

    def _file(self):
        """The HDF5 file. Call under handles_lock."""
        return handle(self.path, lambda: h5py().File(self.path, "r"))

    def _map(self, data) -> np.ndarray | None:
        """Dataset `data` as an array over the file; None where it is in chunks, packed or elsewhere."""
        offset = data.id.get_offset()  # None for what is in chunks, in the header or not there yet
        bytes_there = data.id.get_storage_size()
        if offset is None or data.external or data.dtype.kind not in "fiu" or bytes_there != data.nbytes:
            return None
        linked = not os.path.samefile(data.file.filename, self.path)
        if linked or not data.size or offset + data.nbytes > os.path.getsize(self.path):
            return None
        mapped = np.memmap(self.path, data.dtype, "r", offset, data.shape).view(np.ndarray)
        # Should HDF5 mean something else by these bytes (another kind of float), its reading counts.
        same = all(np.array_equal(data[row], mapped[row], equal_nan=data.dtype.kind == "f") for row in (0, -1))
        return mapped if same else None

    def _provenance(self) -> dict | None:
        with handles_lock:
            file = self._file()
            attributes = {**file["data"].attrs, **file.attrs}
        return parse_provenance(self.path, attributes.get("extractor"))

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if self.mapped is not None:
            return super()._take(rows)
        ordered, back = np.unique(rows, return_inverse=True)  # h5py wants them ascending, each once
        with handles_lock:
            return self._file()["data"][ordered][back] if len(rows) else np.empty((0, *self.shape), self.dtype)


def h5py():
    """The optional package. Raises UserError naming it where it is missing."""
    try:
        import h5py as package
    except ImportError:
        raise UserError("HDF5 feature files (.h5) need the package h5py: pip install h5py") from None
    return package


class H5Store(RowStore):
    """Rows gather in a plain file, as an HDF5 file that was not closed may be damaged; finish() turns it into one."""

    def __init__(self, writer, resume: bool):
        h5py()  # told before the work where it is missing
        super().__init__(writer, resume)

    def header(self, count: int) -> bytes:
        return b""

    def finish(self) -> str:
        super().finish()
        writer, count = self.writer, len(self.rows)
        rows = np.memmap(self.data, writer.dtype, "r", shape=(count, *writer.shape))
        step = max(1, 2**25 // self.bytes)  # records of 32 MiB at a time
        path = self.data.with_suffix(".h5")
        require_room(path, rows.nbytes)
        with h5py().File(path, "w") as file:
            data = file.create_dataset("data", rows.shape, writer.dtype)
            for start in range(0, count, step):
                data[start : start + step] = rows[start : start + step]
            if writer.provenance is not None:
                file.attrs["extractor"] = json.dumps(writer.provenance)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return path.name


def require_room(path, size: int) -> None:
    """Raises OSError where the disk has no room for a file of `size` bytes: HDF5 does not survive to find out."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + HEADERS)
