"""Feature files in NumPy's format: `.npy`, one row for each image."""

import struct
from functools import cached_property

import numpy as np

from captioning.features.base import RowReader, RowStore


class NpyReader(RowReader):
    """NumPy's own format, (N, *shape), mapped into memory."""

    @cached_property
    def mapped(self) -> np.ndarray:
        with np.errstate(over="raise"):  # of the size of an array that no file has
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of several arrays; save one with numpy.save()")
        if array.ndim == 1 and self.path.stem.endswith("-mean"):
            array = array[None]
        return array.view(np.ndarray)  # np.memmap makes every slice a memmap, which is slow


class NpyStore(RowStore):
    """Writes .npy; numpy.load() reads it, also from other programs."""

    def header(self, count: int) -> bytes:
        # As numpy.lib.format writes it, but padded to a length that holds any count.
        shape = (count, *self.writer.shape)
        text = f"{{'descr': '{self.writer.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        length = (10 + len(text) - len(str(count)) + 21 + 63) // 64 * 64
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", length - 10) + text.ljust(length - 11).encode() + b"\n"
