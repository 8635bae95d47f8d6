"""Feature files in LMDB: a key for each image, raw little-endian numbers as its value.

LmdbReader reads a finished file, LmdbStore writes one for FeatureWriter. Several runs may add to a SharedLmdbFile while
others read it.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from captioning.config import MOST_NUMBERS
from captioning.errors import UserError
from captioning.features.base import FeatureReader, parse_provenance
from captioning.features.handles import forget, handle, handles_lock, naming, stamp_of
from captioning.features.lmdb_pages import check_header, check_records
from captioning.features.regions import padded
from captioning.files import require_plain_file

LMDB_OWN_KEYS = (b"@vdim", b"@dtype", b"@extractor")
LMDB_LONGEST_KEY = 511  # bytes, a limit of lmdb's
LMDB_PAGE = 4096  # bytes
LMDB_SMALLEST = 2 * LMDB_PAGE  # bytes, of a file without records
LMDB_LOCK_BYTES = 8192  # of the lock file, with lmdb's usual number of readers
FLUSH_SECONDS = 5.0  # records not yet on the disk are lost when the process is killed
SPARE_BYTES = 2**26  # room in the map of a file beyond its records
_whole: set[tuple] = set()  # files that were looked through: those that fork from here need not do it again


class LmdbReader(FeatureReader):
    """LMDB, a folder or a single file: key -> raw little-endian numbers, as DeepCaption and PicSOM write them.

    `@vdim` is the shape as int32 (absent: one dimension; 0 and D: any number of regions), `@dtype` the type (absent:
    float32), `@extractor` the provenance. shared: other processes may be adding to the file, and lmdb must not reuse
    the pages that are read here.
    """

    def __init__(self, path: Path, keys: Sequence[str] | None = None, shared: bool = False):
        super().__init__(path)
        self.shared = shared
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
        self.varying = len(self.shape) == 2 and self.shape[0] == 0 and 0 < self.shape[1] <= MOST_NUMBERS
        if not self.varying:
            self.check_shape()
        self.bytes = math.prod(self.shape) * self.dtype.itemsize
        self._check(first[0].decode(errors="replace"), first[1])
        self.provenance = parse_provenance(path, own[b"@extractor"])

    @contextlib.contextmanager
    def _reading(self, buffers: bool = False):
        with (
            handles_lock,
            naming(self.path),
            handle(self.file, self._open).begin(buffers=buffers) as transaction,
        ):
            yield transaction

    def _open(self):
        import lmdb

        require_plain_file(self.file, "feature file")
        if not self.file.stat().st_size:
            raise UserError(f"feature file {self.path} is empty")
        # Without a lock unless it is shared: the folder of a finished file may be read-only.
        check_header(self.file)
        environment = lmdb.open(str(self.path), subdir=self.path.is_dir(), readonly=True, lock=self.shared)
        try:
            with environment.begin() as transaction:
                check_whole(self.file, transaction)
        except BaseException:
            environment.close()
            raise
        return environment

    def __len__(self) -> int:
        return self.count

    def keys(self) -> Iterator[str]:
        with self._reading() as transaction:
            names = transaction.cursor().iternext(values=False)
            return iter([name.decode(errors="surrogateescape") for name in names if name not in LMDB_OWN_KEYS])

    def missing(self, keys: Iterable) -> list:
        with self._reading() as transaction:
            cursor = transaction.cursor()
            return [key for key in keys if not cursor.set_key(lmdb_key(key))]

    def get_many(self, keys: Sequence) -> np.ndarray:
        if not len(keys):
            return np.empty((0, *self.shape), self.dtype)
        names = [lmdb_key(key) for key in keys]
        with self._reading(buffers=True) as transaction:
            if self.varying:
                return self.finite(self._regions(keys, [transaction.get(name) for name in names]), keys)
            values = list(map(transaction.get, names))  # views of the file, good until the transaction ends
            if {self.bytes} != {-1 if value is None else len(value) for value in values}:
                for key, value in zip(keys, values):
                    if value is None:
                        raise self.no_record(key)
                    self._check(key, value)
            records = bytearray().join(values)  # the one copy; an array by itself that may be written to
        return self.finite(np.frombuffer(records, self.dtype).reshape(len(keys), *self.shape), keys)

    def _regions(self, keys: Sequence, values: list) -> np.ndarray:
        """Records of different numbers of regions, padded, from the bytes of each or None."""
        records = []
        for key, value in zip(keys, values):
            if value is None:
                raise self.no_record(key)
            self._check(key, value)
            records.append(np.frombuffer(value, self.dtype).reshape(-1, self.shape[1]))
        return padded(records, self.shape[1], self.dtype)

    def _check(self, key, value) -> None:
        if self.varying:
            row = self.shape[1] * self.dtype.itemsize
            if len(value) % row or not 0 < len(value) <= MOST_NUMBERS * self.dtype.itemsize:
                raise UserError(f"feature file {self.path}: record {key!r} has {len(value)} bytes, no regions of {row}")
            return
        if len(value) != self.bytes or not self.bytes:
            wanted = f"shape {self.shape} of {self.dtype.name} takes {self.bytes}"
            raise UserError(f"feature file {self.path}: record {key!r} has {len(value)} bytes, but {wanted}")


def check_whole(file: Path, transaction) -> None:
    """Raises ValueError where the records that `transaction` sees are damaged. A file is looked through once."""
    stamp = *stamp_of(file), transaction.id()
    if stamp not in _whole:
        check_records(file, transaction.id())
        _whole.add(stamp)


def lmdb_key(key) -> bytes:
    """The key as lmdb has it; one that lmdb cannot have becomes another that no file has."""
    encoded = str(key).encode("utf-8", "surrogateescape")
    return encoded if 0 < len(encoded) <= LMDB_LONGEST_KEY else b"@none"


def own_records(shape: tuple[int, ...], dtype: np.dtype, provenance: dict | None) -> list[tuple[bytes, bytes]]:
    """(key, value) of the records that describe the file. Vectors, float32 and an unknown maker need none."""
    own = {
        b"@vdim": np.array(shape, "<i4").tobytes() if len(shape) > 1 else None,
        b"@dtype": dtype.name.encode() if dtype != np.float32 else None,
        b"@extractor": json.dumps(provenance).encode() if provenance is not None else None,
    }
    return [(key, value) for key, value in own.items() if value is not None]


@contextlib.contextmanager
def environment(folder: Path, named: Path, doing: str, room: int = 0, shared: bool = False) -> Iterator:
    """lmdb's environment of a folder, open during the block only: workers must not be forked while one is open.

    named: the file that errors name; doing: "read" or "write"; room: bytes that are to be added; shared: other
    processes may read and write the folder meanwhile, which takes a lock file.
    """
    import lmdb

    with naming(named, doing):
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data.mdb"
        forget(data)  # lmdb refuses to open a file twice in a process
        used = data.stat().st_size if data.exists() else 0
        if 0 < used < LMDB_SMALLEST:  # a full disk, or a kill, as lmdb made it: lmdb would refuse it for ever
            data.unlink()
            used = 0
        # others may add as well: the map has room for several times what this process adds
        size = 2 * used + 4 * (room + SPARE_BYTES)
        if shared:
            reserve_lock_file(folder / "lock.mdb")
        with contextlib.closing(lmdb.open(str(folder), map_size=size, lock=shared)) as opened:
            yield opened


def reserve_lock_file(path: Path) -> None:
    """Give lmdb's lock file its place on the disk. lmdb maps it, and a full disk would kill the process.

    Raises OSError where there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "ab") as file:
            if os.fstat(file.fileno()).st_blocks * 512 < LMDB_LOCK_BYTES:
                os.posix_fallocate(file.fileno(), 0, LMDB_LOCK_BYTES)


def put_records(folder: Path, records: list[tuple[bytes, bytes]], named: Path, shared: bool = False) -> None:
    """Add records to the lmdb file in `folder` in one transaction, which is on the disk when this returns."""
    # a record takes whole pages once it does not fit in a quarter of one
    room = sum(len(value) // LMDB_PAGE + 2 for _, value in records) * LMDB_PAGE
    with environment(folder, named, "write", room, shared) as opened, opened.begin(write=True) as transaction:
        for key, value in records:
            transaction.put(key, value)


class SharedLmdbFile:
    """An lmdb file, a folder, that several runs add records to at the same time: a transaction is seen whole or not.

    shape, dtype: of a record, little-endian; provenance: what made the records.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, provenance: dict):
        self.path, self.shape, self.dtype, self.provenance = path, shape, dtype, provenance
        self.bytes = int(np.prod(shape)) * dtype.itemsize

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that have no record. Raises UserError where the file is damaged, or has other features."""
        data = self.path / "data.mdb"
        if not data.exists() or data.stat().st_size < LMDB_SMALLEST:  # add() makes one that was begun anew
            return list(keys)
        with naming(self.path):
            check_header(data)
        with environment(self.path, self.path, "read", shared=True) as opened, opened.begin() as transaction:
            check_whole(data, transaction)
            made = transaction.get(b"@extractor")
            if made is not None and json.loads(made) != self.provenance:
                raise UserError(f"feature file {self.path} holds features of something else: remove it")
            return [key for key in keys if transaction.get(lmdb_key(key)) is None]

    def add(self, records: dict[str, np.ndarray]) -> None:
        """Write `records` in one transaction, on the disk when this returns."""
        named = [(lmdb_key(key), record.tobytes()) for key, record in records.items()]
        own = own_records(self.shape, self.dtype, self.provenance)
        put_records(self.path, own + named, self.path, shared=True)


class LmdbStore:
    """A folder with data.mdb, as DeepCaption and lmdb's own default have it. Records go in by batches."""

    beside = False
    batch_bytes = 2**25

    def __init__(self, writer, resume: bool):
        self.writer, self.folder = writer, writer.partial / "lmdb"
        self.pending: list[tuple[bytes, bytes]] = []
        self.size, self.flushed = 0, time.monotonic()
        self.rows: list[str] = []
        data = self.folder / "data.mdb"
        if resume and data.exists() and data.stat().st_size >= LMDB_SMALLEST:
            check_header(data)
            with environment(self.folder, writer.path, "read") as opened, opened.begin() as transaction:
                check_whole(data, transaction)
                names = transaction.cursor().iternext(values=False)
                self.rows = [name.decode(errors="surrogateescape") for name in names if name not in LMDB_OWN_KEYS]

    def check(self, key: str) -> None:
        encoded = str(key).encode("utf-8", "surrogateescape")
        if not 0 < len(encoded) <= LMDB_LONGEST_KEY or encoded in LMDB_OWN_KEYS:
            reason = f"empty, reserved or longer than {LMDB_LONGEST_KEY} bytes"
            raise UserError(f"feature file {self.writer.path}: {key[:60]!r} cannot be a key of an lmdb file ({reason})")

    def add(self, key: str, record: np.ndarray) -> None:
        little = record.astype(record.dtype.newbyteorder("<"), copy=False)
        self.pending.append((lmdb_key(key), little.tobytes()))
        self.size += little.nbytes
        if self.size >= self.batch_bytes or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        put_records(self.folder, self.pending, self.writer.path)
        self.pending, self.size, self.flushed = [], 0, time.monotonic()

    def finish(self) -> str:
        writer = self.writer
        self.pending += own_records(writer.shape, writer.dtype, writer.provenance)
        self._flush()
        return self.folder.name

    def stop(self) -> None:
        if self.pending:
            with contextlib.suppress(UserError):
                self._flush()
