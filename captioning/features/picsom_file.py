"""Feature files in PicSOM's format: `.bin`, a 64-byte header and records of one length."""

import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from captioning.errors import UserError
from captioning.features.base import RowReader, RowStore
from captioning.features.picsom_labels import read_labels

PICSOM_HEADER = struct.Struct("if7Q")  # magic, version, header size, record bytes, dimension, format, 3 unused; native
PICSOM_FORMATS = {1: np.dtype(np.float32), 9: np.dtype(np.uintp)}


class BinReader(RowReader):
    """PicSOM: a 64-byte header, then records of one length. A record whose first value is NaN is missing.

    The names of the records are in `X.keys.txt` or `labels.txt` beside it, else in `labels` (label -> number of its
    record); else they are numbers.
    """

    def __init__(self, path: Path, keys: Sequence[str] | None = None, labels: dict[str, int] | None = None):
        self._labels = labels
        super().__init__(path, keys)

    @cached_property
    def mapped(self) -> np.ndarray:
        size = self.path.stat().st_size
        if size < PICSOM_HEADER.size:
            raise ValueError(f"{size} bytes are too few for a PicSOM header")
        mapped = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        magic, _, start, stride, dim, number, *_ = PICSOM_HEADER.unpack(mapped[: PICSOM_HEADER.size].tobytes())
        dtype = PICSOM_FORMATS.get(number)
        if struct.pack("i", magic) != b"PSBD":
            raise ValueError("no PicSOM file: it does not begin with PSBD")
        if dtype is None:
            raise ValueError(f"record format {number} is neither 1 (float32) nor 9 (size_t)")
        if not PICSOM_HEADER.size <= start <= size or not 0 < dim * dtype.itemsize <= stride < 2**62:
            raise ValueError(f"damaged header: header size {start}, record length {stride}, dimension {dim}")
        self.cut = (size - start) % stride != 0
        shape = ((size - start) // stride, dim)
        return np.ndarray(shape, dtype, buffer=mapped, offset=start, strides=(stride, dtype.itemsize))

    def _names(self, keys: Sequence[str] | None) -> dict[str, int] | None:
        labels = self.path.with_name("labels.txt")
        if not self.path.with_suffix(".keys.txt").exists():
            if labels.exists():
                return read_labels(labels)
            if self._labels is not None:
                return self._labels
        # A PicSOM file without labels is asked by numbers (MSR-VTT); other keys are the dataset's, in its order.
        if keys is not None and all(str(key).isdecimal() for key in keys):
            keys = None
        return super()._names(keys)

    def _find(self, keys: Sequence) -> np.ndarray:
        rows = super()._find(keys)
        there = np.flatnonzero(rows >= 0)
        first = self.mapped[rows[there], 0]
        rows[there[first != first]] = -1  # NaN is unlike itself
        return rows

    def keys(self) -> Iterator[str]:
        names = list(super().keys())
        return (name for name, row in zip(names, self._find(names)) if row >= 0)

    def no_record(self, key) -> UserError:
        error = super().no_record(key)
        return UserError(f"{error} (the file ends within a record: it was cut off)") if self.cut else error


class BinStore(RowStore):
    """Writes a PicSOM file of float32 vectors; their names go to keys.txt."""

    def __init__(self, writer, resume: bool):
        if writer.dtype != np.float32:
            raise UserError(f"feature file {writer.path}: PicSOM files hold float32 only, not {writer.dtype}")
        if len(writer.shape) != 1:
            raise UserError(f"feature file {writer.path}: PicSOM files hold vectors only: write maps to .lmdb or .npy")
        super().__init__(writer, resume)

    def header(self, count: int) -> bytes:
        magic = struct.unpack("i", b"PSBD")[0]
        return PICSOM_HEADER.pack(magic, 1.0, PICSOM_HEADER.size, self.bytes, self.writer.shape[0], 1, 0, 0, 0)
