"""Features with another number of regions for each image, as detectors make them (Anderson et al. 2018).

A record is (R, D) with R of its own. Records of several images are padded to the longest with regions of zeros, and a
region of nothing but zeros is no region: `real_regions` tells them apart again, wherever the batch has been.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from captioning.config import MOST_NUMBERS
from captioning.errors import UserError
from captioning.features.base import FeatureReader
from captioning.files import require_plain_file

NAME = "feat"  # of the array in an .npz file, as in ImageCaptioning.pytorch


def padded(records: Sequence[np.ndarray], size: int, dtype: np.dtype) -> np.ndarray:
    """Records (R_i, size) as (n, R, size), R of the longest, the others with regions of zeros behind theirs."""
    out = np.zeros((len(records), max((len(record) for record in records), default=0), size), dtype)
    for row, record in zip(out, records):
        row[: len(record)] = record
    return out


def number_of(key) -> str:
    """The number that a key ends in, its extension aside, as bottom-up features name images; "" where it has none.

    391895 of COCO_val2014_000000391895.jpg.
    """
    stem = Path(str(key)).stem
    return stem[len(stem.rstrip("0123456789")) :].lstrip("0")


class FolderReader(FeatureReader):
    """A folder with a file for each image: `ID.npz` with regions (R, D) under `feat`, or `ID.npy` with a vector (D,).

    As cocobu_att/ and cocobu_fc/ of ImageCaptioning.pytorch. ID is the key, the key without its extension, or the
    number that it ends in: 391895.npz is of COCO_val2014_000000391895.jpg. shape: (0, D) of regions, else (D,).
    """

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            first = next((file for file in path.iterdir() if file.suffix in (".npz", ".npy")), None)
        except OSError as error:
            raise UserError(f"cannot read the feature folder {path}: {error.strerror or error}") from error
        if first is None:
            raise UserError(f"feature folder {path} holds no .npz or .npy files")
        self.suffix = first.suffix
        record = self._read(first)
        self.dtype = record.dtype
        self.shape = (0, record.shape[1]) if record.ndim == 2 else record.shape

    def __len__(self) -> int:
        return sum(1 for _ in self.keys())

    def keys(self) -> Iterator[str]:
        return (file.stem for file in sorted(self.path.iterdir()) if file.suffix == self.suffix)

    def missing(self, keys: Iterable) -> list:
        return [key for key in keys if self._find(key) is None]

    def get_many(self, keys: Sequence) -> np.ndarray:
        records = []
        for key in keys:
            file = self._find(key)
            if file is None:
                raise self.no_record(key)
            record = self._read(file)
            if record.shape[-1] != self.shape[-1] or record.ndim != len(self.shape):
                raise UserError(f"{file} has the shape {record.shape}, other files of its folder {self.shape}")
            records.append(record)
        if len(self.shape) == 1:
            out = np.stack(records).astype(self.dtype) if records else np.empty((0, *self.shape), self.dtype)
        else:
            out = padded(records, self.shape[1], self.dtype)
        return self.finite(out, keys)

    def _find(self, key) -> Path | None:
        """The file of `key`, or None."""
        for name in dict.fromkeys((str(key), Path(str(key)).stem, number_of(key))):
            file = self.path / f"{name}{self.suffix}"
            if name and "/" not in name and file.is_file():
                return file
        return None

    def _read(self, file: Path) -> np.ndarray:
        """The record of a file: (R, D) or (D,), floats. Raises UserError, naming it, where it is no such record."""
        require_plain_file(file, "feature file")
        try:
            record = np.load(file, allow_pickle=False)
            if file.suffix == ".npz":
                with record:
                    record = self._array(record)
        except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
            raise UserError(f"feature file {file} is damaged or holds no array {NAME!r}: {error}") from error
        if not isinstance(record, np.ndarray) or record.dtype.kind not in "fiu" or record.ndim not in (1, 2):
            raise UserError(f"feature file {file} holds no vector (D,) and no regions (R, D)")
        if not 0 < record.size <= MOST_NUMBERS:
            raise UserError(f"feature file {file} holds {record.size:,} numbers, which no image has")
        return record if record.dtype.kind == "f" else record.astype(np.float32)

    def _array(self, archive) -> np.ndarray:
        """The regions of an .npz file, once what the archive says of their size is within reason."""
        size = archive.zip.getinfo(f"{NAME}.npy").file_size
        if size > 8 * MOST_NUMBERS + 2**16:
            raise ValueError(f"its {NAME!r} unpacks to {size:,} bytes")
        return archive[NAME]
