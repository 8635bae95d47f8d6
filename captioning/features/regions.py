"""Features with another number of regions for each image, as detectors make them (Anderson et al. 2018).

A record is (R, D) with R of its own. Records of several images are padded to the longest with regions of zeros, and a
region of nothing but zeros is no region: `real_regions` tells them apart again, wherever the batch has been.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from captioning.config import MOST_NUMBERS
from captioning.errors import UserError
from captioning.features.base import FeatureReader
from captioning.features.handles import naming
from captioning.files import require_plain_file

NAMES = "feat", "x"  # of the array in an .npz file: of ImageCaptioning.pytorch, of bottom-up-attention.pytorch
BOX = "bbox", "image_w", "image_h"  # boxes (R, 4) in an .npz file, and the size of the image


def padded(records: Sequence[np.ndarray], size: int, dtype: np.dtype) -> np.ndarray:
    """Records (R_i, size) as (n, R, size), R of the longest, the others with regions of zeros behind theirs."""
    out = np.zeros((len(records), max((len(record) for record in records), default=0), size), dtype)
    with np.errstate(over="ignore"):  # readers refuse what is infinite then
        for row, record in zip(out, records):
            row[: len(record)] = record
    return out


def require_alike(record: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """Raises UserError, naming `where` the record is from, unless it is one of a reader with this shape and dtype.

    float16 would round the records of other types.
    """
    if record.ndim != len(shape) or record.shape[-1] != shape[-1]:
        others = f"(R, {shape[1]})" if len(shape) == 2 else shape
        raise UserError(f"{where} has the shape {record.shape}, other records {others}")
    if dtype == np.float16 and record.dtype != dtype:
        raise UserError(f"{where} has numbers of the type {record.dtype}, other records float16: use one type for all")


def with_boxes(regions: np.ndarray, boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Regions (R, D) with five numbers of their boxes behind: (R, D + 5), x1/w, y1/h, x2/w, y2/h and the area / (w h).

    boxes: (R, 4), x1, y1, x2, y2 in pixels of an image of that width and height. The five are those of `use_box` in
    ImageCaptioning.pytorch. Raises ValueError where there are not as many boxes as regions, or no such image.
    """
    if np.shape(boxes) != (len(regions), 4):
        raise ValueError(f"boxes of shape {np.shape(boxes)} for {len(regions)} regions")
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise ValueError(f"an image of {width} x {height} pixels")
    x1, y1, x2, y2 = np.asarray(boxes, np.float32).T / np.array([[width], [height], [width], [height]], np.float32)
    return np.column_stack([regions, x1, y1, x2, y2, (x2 - x1) * (y2 - y1)]).astype(regions.dtype)


class FolderReader(FeatureReader):
    """A folder with a file for each image: `KEY.npz` with regions (R, D) under `feat` or `x`, or `KEY.npy` with (D,).

    As cocobu_att/ and cocobu_fc/ of ImageCaptioning.pytorch. shape: (0, D) of regions, else (D,). boxes: records are
    those of `with_boxes`, from what the .npz files say of boxes.
    """

    def __init__(self, path: Path, boxes: bool = False):
        super().__init__(path)
        self.boxes = boxes
        names = self._names()
        first = [min((name for name in names if name.endswith(suffix)), default=None) for suffix in (".npz", ".npy")]
        if not any(first):
            raise UserError(f"feature folder {path} holds no .npz or .npy files")
        if all(first):
            raise UserError(f"feature folder {path} holds .npz and .npy files: put these into a folder of their own")
        self.suffix = ".npz" if first[0] else ".npy"
        record = self._read(path / (first[0] or first[1]))
        self.dtype = record.dtype
        self.shape = (0, record.shape[1]) if record.ndim == 2 else record.shape

    def __len__(self) -> int:
        return sum(1 for _ in self.keys())

    def keys(self) -> Iterator[str]:
        return (name.removesuffix(self.suffix) for name in sorted(self._names()) if name.endswith(self.suffix))

    def missing(self, keys: Iterable) -> list:
        return [key for key in keys if self._find(key) is None]

    def get_many(self, keys: Sequence) -> np.ndarray:
        records = []
        for key in keys:
            file = self._find(key)
            if file is None:
                raise self.no_record(key)
            record = self._read(file)
            require_alike(record, self.shape, self.dtype, f"feature file {file}")
            records.append(record)
        if len(self.shape) == 1:
            out = np.stack(records).astype(self.dtype) if records else np.empty((0, *self.shape), self.dtype)
        else:
            out = padded(records, self.shape[1], self.dtype)
        return self.finite(out, keys)

    def _names(self) -> list[str]:
        """The names of the files in the folder. Hidden ones, as other systems leave them, do not count."""
        with naming(self.path):
            return [entry.name for entry in os.scandir(self.path) if entry.name[0] != "." and entry.is_file()]

    def _find(self, key) -> Path | None:
        """The file of `key`, or None."""
        file = f"{self.path}/{key}{self.suffix}"
        return Path(file) if "/" not in str(key) and os.path.isfile(file) else None

    def _read(self, file: Path) -> np.ndarray:
        """The record of a file: (R, D) or (D,), floats. Raises UserError, naming it, where it is no such record."""
        require_plain_file(file, "feature file")
        with naming(file), open(file, "rb") as opened:
            if opened.read(2) != (b"PK" if self.suffix == ".npz" else b"\x93N"):
                raise ValueError(f"it is empty or no {self.suffix} file of NumPy")
            opened.seek(0)
            record = np.load(opened, allow_pickle=False)
            if self.suffix == ".npz":
                record = self._regions(record)
        if not isinstance(record, np.ndarray) or record.dtype.kind not in "fiu" or record.ndim not in (1, 2):
            raise UserError(f"feature file {file} holds no vector (D,) and no regions (R, D)")
        if not 0 < record.size <= MOST_NUMBERS:
            raise UserError(f"feature file {file} holds {record.size:,} numbers, which no image has")
        return record if record.dtype.kind == "f" else record.astype(np.float32)

    def _regions(self, archive) -> np.ndarray:
        """The regions of an .npz file, with their boxes where these are wanted."""
        name = next((name for name in NAMES if name in archive), None)
        if name is None:
            raise ValueError(f"it holds no array 'feat' or 'x', but {', '.join(archive) or 'nothing'}")
        regions = self._array(archive, name)
        if not self.boxes:
            return regions
        absent = [name for name in BOX if name not in archive]
        if absent:
            raise ValueError(f"--boxes needs {', '.join(absent)} in it")
        boxes, width, height = (self._array(archive, name) for name in BOX)
        return with_boxes(regions.astype(np.result_type(regions, np.float16)), boxes, width.item(), height.item())

    def _array(self, archive, name: str) -> np.ndarray:
        """An array of an .npz file, once what the archive says of its size is within reason."""
        size = archive.zip.getinfo(f"{name}.npy").file_size
        if size > 8 * MOST_NUMBERS + 2**16:
            raise ValueError(f"its {name!r} unpacks to {size:,} bytes")
        return archive[name]
