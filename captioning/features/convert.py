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
from captioning.features.writer import FeatureWriter

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LONGEST_FIELD = 8 * MOST_NUMBERS  # characters


def convert(source: str, file, dtype: str = "float32") -> int:
    """Write the records of `source` to the lmdb file `file`; gives how many.

    source: a folder of .npz or .npy files, a .tsv file, or a feature file. Boxes are left out. Raises UserError for
    what cannot be read.
    """
    shape, records, provenance = read(source)
    with FeatureWriter(file, shape, dtype, provenance) as writer:
        for key, record in records:
            writer.write(key, record)
        return len(writer)


def read(source: str) -> tuple[tuple[int, ...], Iterator[tuple[str, np.ndarray]], dict | None]:
    """The shape of the records of `source`, the records by key, and what made them."""
    if source.lower().endswith(".tsv"):
        records = bottom_up(Path(source))
        first = next(records, None)
        if first is None:
            raise UserError(f"{source} holds no records")

        def every():
            yield first
            yield from records

        return (0, first[1].shape[1]), every(), None
    reader = open_features(source)
    keys = list(reader.keys())
    return reader.shape, ((key, reader[key]) for key in keys), reader.provenance


def bottom_up(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(image id, regions (R, D)) of each line of a .tsv file. Raises UserError, naming the line, for a damaged one."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with open(path, encoding="ascii", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                try:
                    fields = dict(zip(COLUMNS, row, strict=True))
                    numbers = np.frombuffer(base64.b64decode(fields["features"], validate=True), "<f4")
                    yield fields["image_id"], numbers.reshape(int(fields["num_boxes"]), -1)
                except (ValueError, binascii.Error) as error:
                    raise UserError(f"{path}, line {number}: no bottom-up features: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
