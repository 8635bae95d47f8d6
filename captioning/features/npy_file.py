"""Feature files in NumPy's format: `.npy`, one row for each image."""

import struct

import numpy as np

from captioning.features.base import RowReader, RowStore


class NpyReader(RowReader):
    """NumPy's own format, (N, *shape), mapped into memory."""

    def _rows(self) -> np.ndarray:
        if "_mapped" not in self.__dict__:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("an archive of several arrays; save one with numpy.save()")
            if array.ndim == 1 and self.path.stem.endswith("-mean"):
                array = array[None]
            self._mapped = array.view(np.ndarray)  # np.memmap makes every slice a memmap, which is slow
        return self._mapped


class NpyStore(RowStore):
    def header(self, count: int) -> bytes:
        # As numpy.lib.format writes it, but padded to a length that holds any count.
        shape = (count, *self.writer.shape)
        text = f"{{'descr': '{self.writer.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        length = (10 + len(text) - len(str(count)) + 21 + 63) // 64 * 64
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", length - 10) + text.ljust(length - 11).encode() + b"\n"
