"""Feature files in HDF5: `.h5`, rows in the dataset `data`."""

import itertools
import json
import math
import os
import subprocess
import sys
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

from captioning.errors import UserError, one_line
from captioning.features.base import RowReader, RowStore, parse_provenance
from captioning.features.handles import handle, handles_lock, stamp_of

HEADERS = 2**16  # bytes, more than those of a file with one dataset
FILTERS = {1, 2, 3, 6, 32000}  # numbers of HDF5's: gzip, shuffle, checksum, scale and offset, lzf
GZIP = 1  # of these
LARGEST_CHUNK = 2**27  # bytes
MOST_GZIP = 1032  # times: how much larger than its gzip form anything can be
SPARE = 2**16  # bytes that filters may add to a chunk
MOST_SECONDS = 15  # to read the texts of a file, most of them for starting Python
READ_TEXTS = """import h5py, sys
with h5py.File(sys.argv[1], "r") as file:
    for owner in file, file["data"]:
        owner.attrs.get("extractor")
"""
_readable: set[tuple] = set()  # files whose texts were read: those that fork from here need not try again


class H5Reader(RowReader):
    """HDF5, dataset `data`, rows as in .npy. It is mapped into memory where it lies in the file in one piece."""

    @cached_property
    def mapped(self) -> np.ndarray | None:
        with handles_lock:
            return self._map(self._data())

    def _rows(self):
        with handles_lock:
            return self._data() if self.mapped is None else self.mapped

    def _data(self):
        """The dataset of the file. Call under handles_lock."""
        return handle(self.path, self._open)["data"]

    def _open(self):
        """The HDF5 file. Raises UserError where its rows lie in other files, or need more than plain unpacking."""
        file = h5py().File(self.path, "r")
        try:
            check_data(file)
        except BaseException as error:
            file.close()
            if isinstance(error, ValueError):
                raise UserError(f"feature file {self.path}: {error}") from error
            raise
        return file

    def _map(self, data) -> np.ndarray | None:
        """Dataset `data` as an array over the file; None where it is in chunks, packed or elsewhere."""
        offset = data.id.get_offset()  # None for what is in chunks, in the header or not there yet
        bytes_there = data.id.get_storage_size()
        if offset is None or data.dtype.kind not in "fiu" or bytes_there != data.nbytes or not data.size:
            return None
        if offset + data.nbytes > os.path.getsize(self.path):
            raise ValueError("it was cut off")
        mapped = np.memmap(self.path, data.dtype, "r", offset, data.shape).view(np.ndarray)
        # Should HDF5 mean something else by these bytes (another kind of float), its reading counts.
        same = all(np.array_equal(data[row], mapped[row], equal_nan=data.dtype.kind == "f") for row in (0, -1))
        return mapped if same else None

    def _provenance(self) -> dict | None:
        with handles_lock:
            data = self._data()
            owner = next((one for one in (data.parent, data) if "extractor" in one.attrs), None)
            if owner is None:
                return None
            text = h5py().check_string_dtype(owner.attrs.get_id("extractor").dtype)
            if text is None:
                raise ValueError("what made the features is no text")
            if text.length is None:
                check_text(self.path)
            noted = owner.attrs["extractor"]
        return parse_provenance(self.path, noted)

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if self.mapped is not None:
            return super()._take(rows)
        ordered, back = np.unique(rows, return_inverse=True)  # h5py wants them ascending, each once
        with handles_lock:
            data = self._data()
            if data.chunks:
                self._check_chunks(data, ordered)
            return data[ordered][back] if len(rows) else np.empty((0, *self.shape), self.dtype)

    @cached_property
    def _checked(self) -> set[int]:
        """Numbers of the chunks along dimension 0 that check_chunk has seen."""
        return set()

    def _check_chunks(self, data, rows: np.ndarray) -> None:
        """Raises UserError where a chunk of `rows` unpacks to more than its size, which HDF5 would not notice."""
        steps = [range(0, size, step) for size, step in zip(data.shape[1:], data.chunks[1:])]
        for number in set((rows // data.chunks[0]).tolist()) - self._checked:
            try:
                for rest in itertools.product(*steps):
                    check_chunk(data, (number * data.chunks[0], *rest))
            except ValueError as error:
                raise UserError(f"feature file {self.path}: {error}") from error
            self._checked.add(number)


def check_data(file, name: str = "data") -> None:
    """Raises ValueError unless the open HDF5 `file` has a dataset `name` whose rows lie in it, packed plainly or not.

    A file may name other files anywhere, and filters that are loaded from elsewhere; a chunk may unpack to any size.
    """
    if not isinstance(file.get(name, getlink=True), h5py().HardLink):
        raise ValueError(f"its dataset {name!r} is missing or is a link to elsewhere")
    data = file[name]
    if not isinstance(data, h5py().Dataset) or not data.shape:
        raise ValueError(f"{name!r} in it is no dataset of rows")
    if data.is_virtual or data.external:
        raise ValueError("its rows lie in other files: copy them into one")
    made = data.id.get_create_plist()
    filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
    if not set(filters) <= FILTERS or len(set(filters)) < len(filters):
        raise ValueError("its rows are packed by a filter that is not read here: use gzip or lzf")
    if data.chunks and math.prod(data.chunks) * data.dtype.itemsize > LARGEST_CHUNK:
        raise ValueError(f"its chunks of {data.chunks} are larger than {LARGEST_CHUNK:,} bytes")
    if not data.id.get_storage_size():
        raise ValueError(f"{name!r} in it is empty or was never written")


def check_chunk(data, corner: tuple[int, ...]) -> None:
    """Raises ValueError where the chunk of dataset `data` that begins at `corner` unpacks to more than its size."""
    size = math.prod(data.chunks) * data.dtype.itemsize + SPARE
    stored = data.id.get_chunk_info_by_coord(corner).size
    made = data.id.get_create_plist()
    filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
    gzip = GZIP in filters
    too_much = stored > size
    if gzip and not too_much and stored * MOST_GZIP > max(size, LARGEST_CHUNK):
        left_out, packed = data.id.read_direct_chunk(corner)
        if not left_out >> filters.index(GZIP) & 1:
            too_much = len(zlib.decompressobj().decompress(packed, size + 1)) > size
    if too_much:
        raise ValueError(f"the chunk at row {corner[0]} unpacks to more than {size:,} bytes")


def check_text(path: Path) -> None:
    """Raises ValueError where HDF5 cannot read the texts of a file that have no fixed length.

    Over damaged ones it may go on for ever. So a process of its own tries first, once for each file.
    """
    stamp = stamp_of(path)
    if stamp in _readable:
        return
    try:
        tried = subprocess.run([sys.executable, "-c", READ_TEXTS, str(path)], capture_output=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError("it is damaged: its texts cannot be read") from None
    if tried.returncode:
        raise ValueError(f"it is damaged: {one_line(tried.stderr.decode(errors='replace').splitlines()[-1:])}")
    _readable.add(stamp)


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
                # of a fixed length: HDF5 keeps others apart, and reads damaged ones for ever
                file.attrs["extractor"] = np.bytes_(json.dumps(writer.provenance))
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return path.name


def require_room(path, size: int) -> None:
    """Raises OSError where the disk has no room for a file of `size` bytes: HDF5 does not survive to find out."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + HEADERS)
