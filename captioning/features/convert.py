"""One lmdb file of another form of features, which is read many times faster than a folder of files.

The records of a .tsv file are the bottom-up features of Anderson et al. 2018 as they were released: image_id, image_w,
image_h, num_boxes, boxes and features, with tabs between them; the last two are base64 of float32 numbers.
"""

import base64
import binascii
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captioning.config import MOST_NUMBERS
from captioning.errors import UserError
from captioning.features.factory import open_features
from captioning.features.regions import FolderReader, with_boxes
from captioning.features.writer import FeatureWriter

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LONGEST_FIELD = 8 * MOST_NUMBERS  # characters


def convert(source: str, file, dtype: str = "float32", boxes: bool = False) -> int:
    """Write the records of `source` to the lmdb file `file`; gives how many.

    source: a folder of .npz or .npy files, a .tsv file, or a feature file. boxes: behind each region of a .tsv file, or
    of .npz files, the five numbers of its box stand (`with_boxes`). Raises UserError for what cannot be read.
    """
    shape, records, provenance = read(source, boxes)
    with FeatureWriter(file, shape, dtype, provenance) as writer:
        for key, record in records:
            writer.write(key, record)
        return len(writer)


def read(source: str, boxes: bool) -> tuple[tuple[int, ...], Iterator[tuple[str, np.ndarray]], dict | None]:
    """The shape of the records of `source`, the records by key, and what made them."""
    if source.lower().endswith(".tsv"):
        records = bottom_up(Path(source), boxes)
        first = next(records, None)
        if first is None:
            raise UserError(f"{source} holds no records")

        def every():
            yield first
            yield from records

        return (0, first[1].shape[1]), every(), None
    reader = open_features(source)
    if boxes:
        if not isinstance(reader, FolderReader) or reader.suffix != ".npz":
            raise UserError(f"--boxes: {source} is neither a .tsv file nor a folder of .npz files, which have boxes")
        reader = FolderReader(reader.path, boxes=True)
    keys = list(reader.keys())
    return reader.shape, ((key, reader[key]) for key in keys), reader.provenance


def bottom_up(path: Path, boxes: bool) -> Iterator[tuple[str, np.ndarray]]:
    """(image id, regions (R, D), with boxes (R, D + 5)) of each line of a .tsv file.

    Raises UserError, naming the line, for a damaged one.
    """
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with open(path, encoding="ascii", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                try:
                    fields = dict(zip(COLUMNS, row, strict=True))
                    regions = numbers_of(fields, "features")
                    if boxes:
                        size = float(fields["image_w"]), float(fields["image_h"])
                        regions = with_boxes(regions, numbers_of(fields, "boxes"), *size)
                    yield fields["image_id"], regions
                except (ValueError, binascii.Error) as error:
                    raise UserError(f"{path}, line {number}: no bottom-up features: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def numbers_of(fields: dict[str, str], name: str) -> np.ndarray:
    """The numbers of a field in base64, (num_boxes, .). Raises ValueError where they are not as many."""
    numbers = np.frombuffer(base64.b64decode(fields[name], validate=True), "<f4")
    return numbers.reshape(int(fields["num_boxes"]), -1)
