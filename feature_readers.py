"""Readers of feature files, a small class per format. `features.open_features()` picks the one for a file."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common import UserError
from feature_handles import handle, handles_lock, naming
from picsom_files import read_labels

PICSOM_HEADER = struct.Struct("if7Q")  # magic, version, header size, record bytes, dimension, format, 3 unused; native
PICSOM_FORMATS = {1: np.dtype(np.float32), 9: np.dtype(np.uintp)}
LMDB_OWN_KEYS = (b"@vdim", b"@dtype", b"@extractor")
LMDB_LONGEST_KEY = 511  # bytes, a limit of lmdb's
_WALK = """import lmdb, os, sys
with lmdb.open(sys.argv[1], subdir=os.path.isdir(sys.argv[1]), readonly=True, lock=False).begin(buffers=True) as t:
    for key, value in t.cursor():
        bytes(value[:1]), bytes(value[-1:])
"""

# ---------------------------------------------------------------- readers


class FeatureReader:
    """Common to all formats.

    path: the file; shape: of one record, (D,), (D, h, w) or any other; dtype: of the records; maker: what made them
    (`extractor`, `weights_sha256`, `transform`, `feature_type`) or None where the file does not say.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.float32)
        self.maker: dict | None = None

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

    def __contains__(self, key) -> bool:
        return not self.missing([key])

    def pick(self, keys: Sequence) -> Sequence:
        """`keys`, and instead of each tuple of keys the first of it that has a record, or its first if none has."""
        if not any(isinstance(key, tuple) for key in keys):
            return keys
        absent = set(self.missing({one for key in keys if isinstance(key, tuple) for one in key}))
        return [first_present(key, absent) if isinstance(key, tuple) else key for key in keys]

    def no_record(self, key) -> UserError:
        return UserError(f"feature file {self.path} has no record for {key!r}")


class RowReader(FeatureReader):
    """Rows in a file; `X.keys.txt` beside it names them, or else `keys`, the images of the dataset in their order.

    A row may also be asked for by its number, as an int, or as digits where the rows have no names.
    """

    def __init__(self, path: Path, keys: Sequence[str] | None = None):
        super().__init__(path)
        with naming(path):
            rows = self._rows()
            self.count = len(rows)
            self.shape = tuple(rows.shape[1:])
            self.dtype = rows.dtype if rows.dtype.kind == "f" else np.dtype(np.float32)
        if rows.dtype.kind not in "fiu" or not self.shape or 0 in self.shape:
            raise UserError(f"feature file {path} holds {rows.dtype} of shape {rows.shape}, not rows of numbers")
        self.maker = self._maker()
        self._index = self._names(keys)
        named = self._index.values() if self._index else [-1]
        self._all_there = min(named) >= 0 and max(named) < self.count

    def _rows(self):
        """All records as something array-like, (count, *shape)."""
        raise NotImplementedError

    def _maker(self) -> dict | None:
        beside = self.path.with_suffix(".json")
        return _parse_maker(beside, "\n".join(read_lines(beside))) if beside.exists() else None

    def _names(self, keys: Sequence[str] | None) -> dict[str, int] | None:
        """Key -> row number; None where nobody says."""
        named = self.path.with_suffix(".keys.txt")
        if named.exists():
            keys = read_lines(named)
            if len(keys) != self.count:
                raise UserError(f"{named} names {len(keys)} rows, but {self.path} has {self.count}")
            index = {key: row for row, key in enumerate(keys)}
            if len(index) < len(keys):
                twice = next(row for row, key in enumerate(keys) if index[key] != row)
                raise UserError(f"{named}, line {twice + 1}: {keys[twice]!r} stands there twice")
            return index
        if keys is None:
            return None
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
        return self._numbers(keys)

    def _numbers(self, keys: Sequence) -> np.ndarray:
        """Row numbers, -1 where there is no row."""
        index = self._index
        if self._all_there:
            with contextlib.suppress(KeyError):
                return np.array([index[key] for key in keys], np.int64)
        if index is not None:
            found = [key if isinstance(key, (int, np.integer)) else index.get(key, -1) for key in keys]
        else:
            found = [int(key) if not isinstance(key, str) or key.isdecimal() else -1 for key in keys]
        rows = np.array([min(row, self.count) for row in found], np.int64)
        rows[(rows == self.count) | (rows < 0)] = -1
        return rows

    def missing(self, keys: Iterable) -> list:
        keys = list(keys)
        return [keys[i] for i in np.flatnonzero(self._find(keys) < 0)]

    def get_many(self, keys: Sequence) -> np.ndarray:
        rows = self._numbers(keys)
        if not len(rows) or rows.min() >= 0:
            with naming(self.path):
                taken = self._take(rows).astype(self.dtype, copy=False)
            if self._complete(taken):
                return taken
        raise self.no_record(keys[int(self._find(keys).argmin())])

    def _complete(self, records: np.ndarray) -> bool:
        """Whether rows that were read are all records."""
        return True

    def _take(self, rows: np.ndarray) -> np.ndarray:
        return self._rows()[rows]  # not np.take(): it copies the whole of an array whose rows are apart

    def no_record(self, key) -> UserError:
        if self._index is None:
            reason = f"its {self.count} rows have no names: put {self.path.stem}.keys.txt beside it, a key per line"
            return UserError(f"feature file {self.path} has no record for {key!r}: {reason}")
        return super().no_record(key)

    def __getstate__(self):
        # A memory map would be sent to a spawned worker as a copy of the whole file; the worker maps it itself.
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}


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


class BinReader(RowReader):
    """PicSOM: a 64-byte header, then records of one length. A record whose first value is NaN is missing.

    The names of the records are in `X.keys.txt` or `labels.txt` beside it, else in `labels` (label -> number of its
    record); else they are numbers.
    """

    def __init__(self, path: Path, keys: Sequence[str] | None = None, labels: dict[str, int] | None = None):
        self._labels = labels
        super().__init__(path, keys)

    def _rows(self) -> np.ndarray:
        if "_mapped" in self.__dict__:
            return self._mapped
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
        if not PICSOM_HEADER.size <= start <= size or not 0 < dim * dtype.itemsize <= stride:
            raise ValueError(f"damaged header: header size {start}, record length {stride}, dimension {dim}")
        self.cut = (size - start) % stride != 0
        shape = ((size - start) // stride, dim)
        self._mapped = np.ndarray(shape, dtype, buffer=mapped, offset=start, strides=(stride, dtype.itemsize))
        return self._mapped

    def _names(self, keys: Sequence[str] | None) -> dict[str, int] | None:
        labels = self.path.with_name("labels.txt")
        named = self.path.with_suffix(".keys.txt").exists()
        if self._labels is not None and not named and not labels.exists():
            return self._labels
        if named or not labels.exists():
            # A PicSOM file without labels is asked by numbers (MSR-VTT); other keys are the dataset's, in its order.
            if keys is not None and all(str(key).isdecimal() for key in keys):
                keys = None
            return super()._names(keys)
        return read_labels(labels)

    def _complete(self, records: np.ndarray) -> bool:
        first = records[:, 0]
        return bool((first == first).all())  # NaN is unlike itself

    def _find(self, keys: Sequence) -> np.ndarray:
        rows = self._numbers(keys)
        there = np.flatnonzero(rows >= 0)
        first = self._rows()[rows[there], 0]
        rows[there[first != first]] = -1  # NaN
        return rows

    def keys(self) -> Iterator[str]:
        names = list(super().keys())
        return (name for name, row in zip(names, self._find(names)) if row >= 0)

    def no_record(self, key) -> UserError:
        error = super().no_record(key)
        return UserError(f"{error} (the file ends within a record: it was cut off)") if self.cut else error


class H5Reader(RowReader):
    """HDF5, dataset `data`, rows as in .npy. It is mapped into memory where it lies in the file in one piece."""

    def _rows(self):
        if "_mapped" in self.__dict__:
            return self._mapped
        with handles_lock:
            data = handle(self.path, self._open)["data"]
            mapped = self._map(data)
        if mapped is not None:
            self._mapped = mapped
            return mapped
        return data

    def _map(self, data) -> np.ndarray | None:
        """Dataset `data` as an array over the file; None where it is in chunks, packed or elsewhere."""
        offset = data.id.get_offset()  # None for what is in chunks, in the header or not there yet
        bytes_there = data.id.get_storage_size()
        if offset is None or data.external or data.dtype.kind not in "fiu" or bytes_there != data.nbytes:
            return None
        if not data.size or offset + data.nbytes > os.path.getsize(self.path):
            return None
        if not os.path.samefile(data.file.filename, self.path):  # behind an external link
            return None
        mapped = np.memmap(self.path, data.dtype, "r", offset, data.shape).view(np.ndarray)
        # Should HDF5 mean something else by these bytes (another kind of float), its reading counts.
        same = all(np.array_equal(data[row], mapped[row], equal_nan=data.dtype.kind == "f") for row in (0, -1))
        return mapped if same else None

    def _open(self):
        return h5py().File(self.path, "r")

    def _maker(self) -> dict | None:
        with handles_lock:
            file = handle(self.path, self._open)
            attributes = {**file["data"].attrs, **file.attrs}
        return _parse_maker(self.path, attributes.get("extractor"))

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if "_mapped" in self.__dict__:
            return super()._take(rows)
        ordered, back = np.unique(rows, return_inverse=True)  # h5py wants them ascending, each once
        with handles_lock:
            return self._rows()[ordered][back] if len(rows) else np.empty((0, *self.shape), self.dtype)


class LmdbReader(FeatureReader):
    """LMDB, a folder or a single file: key -> raw little-endian numbers, as DeepCaption and PicSOM write them.

    `@vdim` is the shape as int32 (absent: one dimension), `@dtype` the type (absent: float32), `@extractor` the maker.
    """

    lock = False  # nobody writes to a finished file, and its folder may be read-only

    def __init__(self, path: Path, keys: Sequence[str] | None = None):
        super().__init__(path)
        self.file = path / "data.mdb" if path.is_dir() else path
        with self._reading() as transaction:
            own = {key: transaction.get(key) for key in LMDB_OWN_KEYS}
            first = next(((k, v) for k, v in transaction.cursor() if k not in LMDB_OWN_KEYS), None)
            if first is None:
                raise UserError(f"feature file {path} holds no records")
            self.count = transaction.stat()["entries"] - sum(value is not None for value in own.values())
            self.dtype = np.dtype((own[b"@dtype"] or b"float32").decode()).newbyteorder("<")
            if self.dtype.kind != "f":
                raise ValueError(f"its @dtype {self.dtype} is no float type")
            if own[b"@vdim"] is None:
                self.shape = (len(first[1]) // self.dtype.itemsize,)
            else:
                self.shape = tuple(int(n) for n in np.frombuffer(own[b"@vdim"], "<i4"))
        self.bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._check(first[0].decode(errors="replace"), first[1])
        self.maker = _parse_maker(path, own[b"@extractor"])

    @contextlib.contextmanager
    def _reading(self, buffers: bool = False):
        import lmdb

        with (
            handles_lock,
            naming(self.path, errors=(lmdb.Error,)),
            handle(self.file, self._open).begin(buffers=buffers) as transaction,
        ):
            yield transaction

    def _open(self):
        import lmdb

        if not self.file.stat().st_size:
            raise UserError(f"feature file {self.path} is empty")
        environment = lmdb.open(str(self.path), subdir=self.path.is_dir(), readonly=True, lock=self.lock)
        # A page beyond the end of the file would not raise but kill the process (SIGBUS). The last pages may rightly be
        # absent if they were freed before they were ever written, hence the second look, in a process of its own.
        claimed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if self.file.stat().st_size < claimed:
            walk = [sys.executable, "-c", _WALK, str(self.path)]
            if subprocess.run(walk, capture_output=True).returncode:
                environment.close()
                raise UserError(f"feature file {self.path} was cut off: it should have {claimed:,} bytes")
        return environment

    def __len__(self) -> int:
        return self.count

    def keys(self) -> Iterator[str]:
        with self._reading() as transaction:
            names = [key.decode() for key in transaction.cursor().iternext(values=False) if key not in LMDB_OWN_KEYS]
        return iter(names)

    def missing(self, keys: Iterable) -> list:
        with self._reading() as transaction:
            cursor = transaction.cursor()
            return [key for key in keys if not cursor.set_key(lmdb_key(key))]

    def get_many(self, keys: Sequence) -> np.ndarray:
        if not len(keys):
            return np.empty((0, *self.shape), self.dtype)
        names = [lmdb_key(key) for key in keys]
        with self._reading(buffers=True) as transaction:
            values = list(map(transaction.get, names))  # views of the file, good until the transaction ends
            if {self.bytes} != {-1 if value is None else len(value) for value in values}:
                for key, value in zip(keys, values):
                    if value is None:
                        raise self.no_record(key)
                    self._check(key, value)
            records = bytearray().join(values)  # the one copy; an array by itself that may be written to
        return np.frombuffer(records, self.dtype).reshape(len(keys), *self.shape)

    def _check(self, key, value) -> None:
        if len(value) != self.bytes or not self.bytes:
            wanted = f"shape {self.shape} of {self.dtype.name} takes {self.bytes}"
            raise UserError(f"feature file {self.path}: record {key!r} has {len(value)} bytes, but {wanted}")


def first_present(keys: tuple, absent: set):
    return next((key for key in keys if key not in absent), keys[0])


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.stat().st_size else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _parse_maker(path: Path, text: str | bytes | None) -> dict | None:
    """What made the features, from JSON; None where there is no text or it is about something else."""
    if text is None:
        return None
    try:
        maker = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: what made the features is not valid JSON: {error}") from None
    return maker if isinstance(maker, dict) and "extractor" in maker else None


def lmdb_key(key) -> bytes:
    """The key as lmdb has it; one that lmdb cannot have becomes another that no file has."""
    encoded = str(key).encode("utf-8", "surrogateescape")
    return encoded if 0 < len(encoded) <= LMDB_LONGEST_KEY else b"@none"


def h5py():
    """The optional package. Raises UserError naming it where it is missing."""
    try:
        import h5py as package
    except ImportError:
        raise UserError("HDF5 feature files (.h5) need the package h5py: pip install h5py") from None
    return package
