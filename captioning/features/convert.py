"""One lmdb file of another form of features, which is read many times faster than a folder of files.

The records of a .tsv file are the bottom-up features of Anderson et al. 2018 as they were released: image_id, image_w,
image_h, num_boxes, boxes and features, with tabs between them; the last two are base64 of float32 numbers.
"""

import base64
import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning.config import MOST_NUMBERS
from captioning.errors import UserError, warn
from captioning.features.base import FeatureReader
from captioning.features.factory import open_features
from captioning.features.regions import FolderReader, require_alike, with_boxes
from captioning.features.writer import FeatureWriter

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LONGEST_FIELD = 8 * MOST_NUMBERS  # characters
TSV = re.compile(r"\.tsv(\.\d+)?$", re.IGNORECASE)  # the large ones were released in parts: .tsv.0, .tsv.1


class Record(NamedTuple):
    """A record of a source: its key and numbers, or what is wrong with it."""

    key: str
    numbers: np.ndarray | None
    error: UserError | None = None


def convert(
    source: str, file, dtype: str = "float32", boxes: bool = False, resume: bool = False
) -> tuple[int, list[str]]:
    """Write the records of `source` to the lmdb file `file`; gives how many it has then, and what was left out.

    source: a folder of .npz or .npy files, a .tsv file, or a feature file. boxes: behind each region of a .tsv file, or
    of .npz files, the five numbers of its box stand (`with_boxes`). resume: keep the records of an interrupted run. A
    record that cannot be read, is of another shape, or has a key that was there before is left out with a warning.
    Raises UserError for a source without any good record, and for numbers that `dtype` cannot hold.
    """
    shape, keys, records, provenance = read(source, boxes)
    left_out, seen = [], set()
    with FeatureWriter(file, shape, dtype, provenance, keys, resume) as writer:
        before = set(writer.done)
        for record in records:
            fault = fault_of(record, shape, seen)
            seen.add(record.key)
            if fault:
                left_out.append(fault)
                warn(f"{fault}; left out")
            elif record.key not in before:
                writer.write(record.key, record.numbers)
        if left_out and not len(writer):
            raise UserError(f"{source} has no good record: {left_out[0]}")
        return len(writer), left_out


def fault_of(record: Record, shape: tuple[int, ...], seen: set[str]) -> str:
    """What is wrong with a record, or ""; shape: of a good one; seen: the keys of those before it."""
    if record.error is not None:
        return str(record.error)
    if record.key in seen:
        return f"{record.key!r} is there twice"
    try:
        require_alike(record.numbers, shape, record.numbers.dtype, repr(record.key))
    except UserError as error:
        return str(error)
    return ""


class Source(NamedTuple):
    """What is converted: the shape of its records, their keys where they are known, the records, what made them."""

    shape: tuple[int, ...]
    keys: list[str] | None
    records: Iterable[Record]
    provenance: dict | None = None


def read(source: str, boxes: bool) -> Source:
    """What `source` names, opened. Raises UserError where it has no good record."""
    if TSV.search(source):
        records, begun = bottom_up(Path(source), boxes), []
        for record in records:
            begun.append(record)
            if record.numbers is not None:
                return Source((0, record.numbers.shape[1]), None, chain(begun, records))
        raise begun[0].error if begun else UserError(f"{source} holds no records")
    reader = open_features(source)
    if boxes:
        if not isinstance(reader, FolderReader) or reader.suffix != ".npz":
            raise UserError(f"--boxes: {source} is neither a .tsv file nor a folder of .npz files, which have boxes")
        reader = FolderReader(reader.path, boxes=True)
    keys = list(reader.keys())
    return Source(reader.shape, keys, (record_of(reader, key) for key in keys), reader.provenance)


def record_of(reader: FeatureReader, key: str) -> Record:
    """The record of `key` in a feature file or folder."""
    try:
        return Record(key, reader[key])
    except UserError as error:
        return Record(key, None, error)


def bottom_up(path: Path, boxes: bool) -> Iterator[Record]:
    """The regions (R, D), with boxes (R, D + 5), of each line of a .tsv file.

    Raises UserError where the file cannot be read.
    """
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with open(path, encoding="ascii", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                if row:
                    yield record_of_line(row, boxes, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def record_of_line(row: list[str], boxes: bool, place: str) -> Record:
    """The record of the fields of a line; place: where it stands."""
    try:
        if len(row) != len(COLUMNS):
            raise ValueError(f"{len(row)} fields, not {len(COLUMNS)}")
        fields = dict(zip(COLUMNS, row))
        regions = numbers_of(fields, "features")
        if boxes:
            size = float(fields["image_w"]), float(fields["image_h"])
            regions = with_boxes(regions, numbers_of(fields, "boxes"), *size)
        if not np.isfinite(regions).all():
            raise ValueError("numbers that are not finite")
        return Record(fields["image_id"].strip(), regions)
    except ValueError as error:
        return Record(place, None, UserError(f"{place}: no bottom-up features: {error}"))


def numbers_of(fields: dict[str, str], name: str) -> np.ndarray:
    """The numbers of a field in base64, (num_boxes, .). Raises ValueError where they are not as many."""
    numbers = np.frombuffer(base64.b64decode(fields[name], validate=True), "<f4")
    count = int(fields["num_boxes"])
    if count < 1 or not numbers.size or numbers.size % count:
        raise ValueError(f"{name} has {numbers.size} numbers for {count} boxes")
    return numbers.reshape(count, -1)
