"""What readers and writers of feature files share: records by key, rows in order with their names."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from captioning.config import MOST_NUMBERS, check_provenance
from captioning.errors import UserError, one_line
from captioning.features.handles import naming
from captioning.features.partial import refuse_half_placed
from captioning.files import atomic_write, parse_json, read_lines, require_plain_file


class FeatureReader:
    """Reads records from a feature file; each format has a class of its own.

    path: the file; shape: of one record, (D,), (D, h, w) or any other; dtype: of the records; provenance: what made
    them (`extractor`, `weights_sha256`, `transform`, `feature_type`) or None where the file does not say.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.float32)
        self.provenance: dict | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def keys(self) -> Iterator[str]:
        """The keys that have a record, in the file's order."""
        raise NotImplementedError

    def missing(self, keys: Iterable) -> list:
        """Those of `keys` that have no record."""
        raise NotImplementedError

    def get_many(self, keys: Sequence) -> np.ndarray:
        """Records of `keys`, (len(keys), *shape). Raises UserError naming a key that is not there, and the file."""
        raise NotImplementedError

    def __getitem__(self, key) -> np.ndarray:
        return self.get_many([key])[0]

    def pick(self, keys: Sequence) -> Sequence:
        """`keys`, and instead of each tuple of keys the first of it that has a record, or its first if none has."""
        if not any(isinstance(key, tuple) for key in keys):
            return keys
        several = [key for key in keys if isinstance(key, tuple)]
        absent = set(self.missing({one for key in several for one in key}))
        chosen = {key: next((one for one in key if one not in absent), key[0]) for key in several}
        return [chosen.get(key, key) for key in keys]

    def no_record(self, key) -> UserError:
        return UserError(f"feature file {self.path} has no record for {key!r}")

    def check_shape(self) -> None:
        """Raises UserError where a record has no numbers, or more than any feature of an image."""
        if not self.shape or min(self.shape) < 1 or math.prod(self.shape) > MOST_NUMBERS:
            raise UserError(f"feature file {self.path} is damaged, or no feature file: its records are {self.shape}")

    def finite(self, records: np.ndarray, keys: Sequence) -> np.ndarray:
        """`records`, (len(keys), *shape). Raises UserError naming the first of `keys` whose record is not finite."""
        if records.dtype.kind == "f" and not surely_finite(records):
            good = np.isfinite(records.reshape(len(records), -1)).all(1)
            if not good.all():
                key = keys[int(good.argmin())]
                reason = f"the record of {key!r} has values that are no finite numbers: extract it anew"
                raise UserError(f"feature file {self.path}: {reason}")
        return records


def surely_finite(values: np.ndarray) -> bool:
    """Whether all of `values` are finite numbers; False where a closer look is needed. Much faster than that look."""
    if values.dtype.itemsize == 2:  # sums of float16 are slow: the largest of its bits, read as whole numbers, tells
        signed, unsigned = (values.view(values.dtype.str.replace("f", kind)) for kind in "iu")
        return bool(signed.max(initial=0) < 0x7C00 and unsigned.max(initial=0) < 0xFC00)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


class RowReader(FeatureReader):
    """Rows in a file; `X.keys.txt` beside it names them, or else `keys`, the images of the dataset in their order.

    A row may also be asked for by its number, as an int, or as digits where the rows have no names.
    row_rule: how rows are found, as a sentence, where nothing names them and they are many; else None.
    """

    row_rule: str | None = None

    def __init__(self, path: Path, keys: Sequence[str] | None = None):
        super().__init__(path)
        refuse_half_placed(path)
        with naming(path):
            require_plain_file(path, "feature file")
            self.bytes = os.path.getsize(path)
            rows = self._rows()
            self.shape = tuple(map(int, rows.shape[1:]))
            self.dtype = rows.dtype if rows.dtype.kind == "f" else np.dtype(np.float32)
        if rows.dtype.kind not in "fiu" or not self.shape or 0 in self.shape:
            raise UserError(f"feature file {path} holds {rows.dtype} of shape {rows.shape}, not rows of numbers")
        self.check_shape()
        self.count = len(rows)
        if not self.count:
            raise UserError(f"feature file {path} holds no records")
        with naming(path):
            self.provenance = self._provenance()
        self._index = self._names(keys)
        named = self._index.values() if self._index else [-1]
        self._all_there = min(named) >= 0 and max(named) < self.count

    @cached_property
    def mapped(self) -> np.ndarray | None:
        """All records, (count, *shape), as an array over the file; None where the file cannot be mapped into memory."""
        raise NotImplementedError

    def _rows(self):
        """All records as something array-like, (count, *shape)."""
        return self.mapped

    def _provenance(self) -> dict | None:
        beside = self.path.with_suffix(".json")
        return parse_provenance(beside, "\n".join(read_lines(beside, "feature file"))) if beside.exists() else None

    def _names(self, keys: Sequence[str] | None) -> dict[str, int] | None:
        """Key -> row number; None where nobody says."""
        named = self.path.with_suffix(".keys.txt")
        if named.exists():
            keys = read_lines(named, "feature file", errors="surrogateescape")
            if len(keys) != self.count:
                raise UserError(f"{named} names {len(keys)} rows, but {self.path} has {self.count}")
            index = {key: row for row, key in enumerate(keys)}
            if len(index) < len(keys):
                twice = next(row for row, key in enumerate(keys) if index[key] != row)
                raise UserError(f"{named}, line {twice + 1}: {keys[twice]!r} stands there twice")
            return index
        self.row_rule = "row N, counted from 0, is asked for by the number N"
        if keys is None:
            return None
        self.row_rule = "they are taken in the order of the dataset's images"
        if len(keys) != self.count:
            have = f"{self.path} has {self.count} rows, the dataset {len(keys)} images"
            raise UserError(f"{have}, and there is no {named} to name the rows")
        return {key: row for row, key in reversed(list(enumerate(keys)))}  # of equal names the first counts

    def __len__(self) -> int:
        return self.count

    def keys(self) -> Iterator[str]:
        return iter(self._index) if self._index is not None else map(str, range(self.count))

    def _find(self, keys: Sequence) -> np.ndarray:
        """Row numbers, -1 where there is no record."""
        index = self._index
        if self._all_there:
            with contextlib.suppress(KeyError):
                return np.array([index[key] for key in keys], np.int64)
        if index is not None:
            found = [key if isinstance(key, (int, np.integer)) else index.get(key, -1) for key in keys]
        else:
            found = [
                key if not isinstance(key, str) else int(key) if key.isdecimal() and len(key) < 19 else -1
                for key in keys
            ]
        rows = np.array([min(row, self.count) for row in found], np.int64)
        rows[(rows == self.count) | (rows < 0)] = -1
        return rows

    def missing(self, keys: Iterable) -> list:
        self.check_size()
        keys = list(keys)
        return [keys[i] for i in np.flatnonzero(self._find(keys) < 0)]

    def get_many(self, keys: Sequence) -> np.ndarray:
        self.check_size()
        rows = self._find(keys)
        if len(rows) and rows.min() < 0:
            raise self.no_record(keys[int(rows.argmin())])
        with naming(self.path), np.errstate(over="ignore"):
            records = self._take(rows).astype(self.dtype, copy=False)
        return self.finite(records, keys)

    def check_size(self) -> None:
        """Raises UserError where the file is no longer there or has become shorter.

        To read what is no longer there of a file in memory ends the process (SIGBUS). So it still does where the file
        is cut between this look and the reading.
        """
        with naming(self.path):
            now = os.path.getsize(self.path)
        if now < self.bytes:
            raise UserError(f"feature file {self.path} was cut off while it was read: {now:,} of {self.bytes:,} bytes")

    def _take(self, rows: np.ndarray) -> np.ndarray:
        return self._rows()[rows]  # not np.take(): it copies the whole of an array whose rows are apart

    def no_record(self, key) -> UserError:
        if self._index is None:
            reason = f"its {self.count} rows have no names: put {self.path.stem}.keys.txt beside it, a key per line"
            return UserError(f"feature file {self.path} has no record for {key!r}: {reason}")
        return super().no_record(key)

    def __getstate__(self):
        # A memory map would be sent to a spawned worker as a copy of the whole file; the worker maps it itself.
        return {name: value for name, value in self.__dict__.items() if name != "mapped"}


def parse_provenance(path: Path, text: str | bytes | None) -> dict | None:
    """What made the features, from JSON; None where there is no text or it is about something else.

    Raises UserError naming the file where it is no JSON, or where `check_provenance` refuses a value.
    """
    try:
        provenance = parse_json("null" if text is None else text)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: what made the features is not valid JSON: {one_line(error)}") from None
    if not isinstance(provenance, dict) or provenance.get("extractor") is None:
        return None
    check_provenance(provenance, str(path))
    return provenance


class RowStore:
    """What a FeatureWriter writes rows with, one after the other behind a header; their names go to keys.txt.

    rows: the keys that an interrupted run has written. check() a key, add() a record. Then finish() completes the file,
    or stop() keeps what is there for another run.
    """

    beside = True  # names and provenance are files beside the feature file

    def __init__(self, writer, resume: bool):
        self.writer = writer
        self.data, self.names = writer.partial / "data", writer.partial / "keys.txt"
        self.bytes = int(np.prod(writer.shape)) * writer.dtype.itemsize
        self.rows: list[str] = []
        if resume and self.data.exists() and self.names.exists():
            lines = self.names.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
            whole = (self.data.stat().st_size - len(self.header(0))) // self.bytes
            self.rows = lines[: max(0, whole)]  # what both files have: either may have been cut off
        head = self.header(len(self.rows))
        with atomic_write(self.names, "wb") as file:
            file.writelines(f"{key}\n".encode("utf-8", "surrogateescape") for key in self.rows)
        self.file = open(self.data, "r+b" if self.rows else "w+b")  # noqa: SIM115 (closed by finish)
        self.file.write(head)
        self.file.truncate(len(head) + len(self.rows) * self.bytes)
        self.file.seek(0, os.SEEK_END)
        self.name_file = open(self.names, "a", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115

    def header(self, count: int) -> bytes:
        """The header of a file of `count` records. Its length must not depend on `count`."""
        raise NotImplementedError

    def check(self, key: str) -> None:
        if not key or "\n" in key or "\r" in key:
            raise UserError(f"feature file {self.writer.path}: {key!r} cannot be a key (empty or with a line break)")

    def add(self, key: str, record: np.ndarray) -> None:
        self.file.write(record.data)
        self.file.flush()  # a process that is killed loses no record
        self.name_file.write(f"{key}\n")
        self.name_file.flush()
        self.rows.append(key)

    def finish(self) -> str:
        """Called where all records are there. Gives the name, in the partial folder, of the finished file."""
        self.file.seek(0)
        self.file.write(self.header(len(self.rows)))
        for file in (self.file, self.name_file):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        return self.data.name

    def stop(self) -> None:
        for file in (self.file, self.name_file):
            with contextlib.suppress(OSError):
                file.close()
