"""Feature files: one vector, or one map, for every image key.

    reader = open_features("resnet152.lmdb")        # .npy, .lmdb, .bin (PicSOM), .h5, .txt (a list of .bin)
    reader.shape, reader.dtype, reader.maker        # (2048,), float32, {"extractor": "resnet152", ...} or None
    reader["000000000009.jpg"]                      # (2048,)
    reader.get_many(keys)                           # (len(keys), 2048), in the file's own dtype

    with FeatureWriter("lite0.lmdb", (1280, 7, 7), "float16", maker) as writer:
        writer.write("000000000009.jpg", array)

Where `X.EXT` does not exist and `X-mean.EXT` does, its one record is given for every key.
"""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common import UserError, atomic_write, read_json
from feature_handles import forget, naming
from feature_readers import (
    LMDB_LONGEST_KEY,
    LMDB_OWN_KEYS,
    PICSOM_HEADER,
    BinReader,
    FeatureReader,
    H5Reader,
    LmdbReader,
    NpyReader,
    RowReader,
    h5py,
    lmdb_key,
    read_lines,
)

DTYPES = ("float32", "float16")

# ---------------------------------------------------------------- reading


class MeanReader(FeatureReader):
    """`X-mean.EXT`: its one record stands for every key."""

    def __init__(self, reader: FeatureReader):
        super().__init__(reader.path)
        if len(reader) != 1:
            raise UserError(f"feature file {reader.path} should hold one record, the mean, but has {len(reader)}")
        self.shape, self.dtype, self.maker = reader.shape, reader.dtype, reader.maker
        self._mean = reader[0] if isinstance(reader, RowReader) else reader[next(reader.keys())]

    def __len__(self) -> int:
        return 1

    def keys(self) -> Iterator[str]:
        return iter(())

    def missing(self, keys: Iterable) -> list:
        return []

    def get_many(self, keys: Sequence) -> np.ndarray:
        return np.repeat(self._mean[None], len(keys), axis=0)


class ListReader(FeatureReader):
    """`.txt`: PicSOM files, one a line (relative to the list's folder), whose vectors are joined end to end."""

    def __init__(self, path: Path, keys: Sequence[str] | None = None, labels: dict[str, int] | None = None):
        super().__init__(path)
        names = [name for line in read_lines(path) if (name := line.split("#")[0].strip())]
        if not names:
            raise UserError(f"feature list {path} names no files")
        for name in names:
            if not name.endswith(".bin"):
                raise UserError(f"feature list {path}: {name!r} is no PicSOM file (.bin)")
        self.parts = [open_features(path.parent / name, keys, labels) for name in names]
        self.shape = (sum(part.shape[0] for part in self.parts),)
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return max(map(len, self.parts))

    def keys(self) -> Iterator[str]:
        lists = [list(part.keys()) for part in self.parts if not isinstance(part, MeanReader)]
        return iter([key for key in (lists or [[]])[0] if not any(part.missing([key]) for part in self.parts)])

    def missing(self, keys: Iterable) -> list:
        keys = list(keys)
        absent: set = set()
        for part in self.parts:
            picked = part.pick(keys)
            lacking = set(part.missing(picked))
            absent.update(key for key, own in zip(keys, picked) if own in lacking)
        return [key for key in keys if key in absent]

    def pick(self, keys: Sequence) -> Sequence:
        return keys  # each part picks its own

    def get_many(self, keys: Sequence) -> np.ndarray:
        return np.concatenate([part.get_many(part.pick(keys)) for part in self.parts], axis=1)

    def no_record(self, key) -> UserError:
        return super().no_record(key[0] if isinstance(key, tuple) else key)


READERS = {".npy": NpyReader, ".lmdb": LmdbReader, ".bin": BinReader, ".h5": H5Reader, ".txt": ListReader}


def is_feature_file(name: str) -> bool:
    """Whether a name of `--features` is a feature file, by its extension, rather than an encoder."""
    return Path(name).suffix.lower() in READERS


def open_features(path, keys: Sequence[str] | None = None, labels: dict[str, int] | None = None) -> FeatureReader:
    """The reader for the format that the extension of `path` tells.

    `keys` are the keys of all images of the dataset in its order: rows of a file that does not name them are taken
    to follow that order. `labels` (label -> record number) names the records of PicSOM files that do not do it
    themselves. Raises UserError for a file that is missing, damaged, cut off, or of an unknown kind.
    """
    path = Path(path).expanduser()
    kind = READERS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"feature file {path}: unknown extension {path.suffix!r}; known: {' '.join(READERS)}")
    if path.exists():
        return kind(path, keys, labels) if labels is not None and kind in (BinReader, ListReader) else kind(path, keys)
    mean = path.with_name(f"{path.stem}-mean{path.suffix}")
    if mean.exists():
        return MeanReader(kind(mean, None))
    raise UserError(f"no such feature file: {path}")


# ---------------------------------------------------------------- writing


class FeatureWriter:
    """Writes a feature file of the format that the extension of `path` tells: .lmdb, .npy, .bin (PicSOM) or .h5.

    shape: of one record; dtype: "float32" or "float16" (not in .bin); maker: what made the features (`extractor`,
    `weights_sha256`, `transform`, `feature_type`), stored with them; keys: those that are to come, for `todo`.
    The records gather in `X.EXT.partial/`; close() puts the file in place. After an interruption the folder stays, and
    with `resume` the records in it are kept and `key in writer` tells which they are.
    As a context manager it closes on success and leaves the partial folder on an exception.
    Raises UserError for a shape or type the format does not know, a key written twice, values that do not fit.
    """

    def __init__(
        self,
        path,
        shape: tuple[int, ...],
        dtype: str = "float32",
        maker: dict | None = None,
        keys: Iterable[str] | None = None,
        resume: bool = False,
    ):
        self.path = Path(path).expanduser()
        store = STORES.get(self.path.suffix.lower())
        if store is None:
            raise UserError(f"feature file {path}: cannot write {self.path.suffix!r}; known: {' '.join(STORES)}")
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        if self.dtype.name not in DTYPES:
            raise UserError(f"feature file {path}: dtype {self.dtype} is none of {', '.join(DTYPES)}")
        if not self.shape or min(self.shape) < 1:
            raise UserError(f"feature file {path}: {self.shape} is no shape of a record")
        self.maker, self.keys = maker, None if keys is None else list(keys)
        if store.beside:
            self._check_siblings()
        self.partial = self.path.with_name(self.path.name + ".partial")
        with naming(self.path, "write"):
            resume = self._prepare(resume)
            self.store = store(self, resume)
        self.done = set(self.store.keys())

    def _check_siblings(self) -> None:
        """Files of one name and several formats share X.json: refuse to change what it says of another one."""
        noted = self.path.with_suffix(".json")
        for suffix, store in STORES.items():
            other = self.path.with_suffix(suffix)
            shares = store.beside and other != self.path and other.exists() and noted.exists()
            if shares and read_json(noted, "feature file") != json.loads(json.dumps(self.maker)):
                raise UserError(f"{other} holds other features and would share {noted}: use another name")

    def _prepare(self, resume: bool) -> bool:
        """Make the partial folder, or keep the one that is there if it was begun with the same settings."""
        settings = {"shape": list(self.shape), "dtype": self.dtype.name, "maker": self.maker}
        noted = self.partial / "settings.json"
        if resume and noted.exists():
            if read_json(noted, "resume") != json.loads(json.dumps(settings)):
                raise UserError(
                    f"{self.partial} was begun with other settings: remove it, or go on with those in {noted}"
                )
            return True
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        with atomic_write(noted) as file:
            json.dump(settings, file, indent=1)
        return False

    def __contains__(self, key) -> bool:
        return key in self.done

    def __len__(self) -> int:
        return len(self.done)

    @property
    def todo(self) -> list[str]:
        """Those of `keys` not yet written, in their order, each once."""
        return [key for key in dict.fromkeys(self.keys or ()) if key not in self.done]

    def write(self, key: str, array) -> None:
        """Add the record of `key`: an array of `shape`, cast to `dtype`."""
        if key in self.done:
            raise UserError(f"feature file {self.path}: {key!r} is written twice; keys must differ")
        self.store.check(key)
        with np.errstate(over="ignore"):
            record = np.ascontiguousarray(array, self.dtype)
        if record.shape != self.shape:
            raise UserError(f"feature file {self.path}: {key!r} has shape {record.shape}, not {self.shape}")
        if not np.isfinite(record).all():
            raise UserError(f"feature file {self.path}: {key!r} has values that {self.dtype} cannot hold, or NaN")
        with naming(self.path, "write"):
            self.store.add(key, record)
        self.done.add(key)

    def close(self) -> None:
        """Put the file in place, with what belongs beside it, over an older one. Raises UserError if it is empty."""
        if not self.done:
            raise UserError(f"feature file {self.path}: no records were written")
        with naming(self.path, "write"):
            self.store.finish()
            self.store.complete()
            beside = [self.path.with_suffix(end) for end in (".keys.txt", ".json")] if self.store.beside else []
            # The old file goes first: never may old records stand beside new names.
            for old in (self.path, *beside):
                forget(old / "data.mdb" if old.is_dir() else old)
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            if beside:
                os.replace(self.partial / "keys.txt", beside[0])
                if self.maker is not None:
                    with atomic_write(beside[1]) as file:
                        json.dump(self.maker, file, indent=1)
            self.store.place()
            shutil.rmtree(self.partial, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(Exception):  # what went wrong first is what matters
                self.store.finish()


class RowStore:
    """Rows in the order of writing, behind a header; their names in keys.txt."""

    beside = True

    def __init__(self, writer: FeatureWriter, resume: bool):
        self.writer = writer
        self.data, self.names = writer.partial / "data", writer.partial / "keys.txt"
        self.bytes = int(np.prod(writer.shape)) * writer.dtype.itemsize
        self.rows: list[str] = []
        if resume and self.data.exists() and self.names.exists():
            lines = self.names.read_text(encoding="utf-8").split("\n")[:-1]
            whole = (self.data.stat().st_size - len(self.header(0))) // self.bytes
            self.rows = lines[: max(0, whole)]  # what both files have: either may have been cut off
        self.open()

    def open(self) -> None:
        head = self.header(len(self.rows))
        with open(self.names, "w", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in self.rows)
        self.file = open(self.data, "r+b" if self.rows else "w+b")  # noqa: SIM115 (closed by finish)
        self.file.write(head)
        self.file.truncate(len(head) + len(self.rows) * self.bytes)
        self.file.seek(0, os.SEEK_END)
        self.name_file = open(self.names, "a", encoding="utf-8")  # noqa: SIM115

    def header(self, count: int) -> bytes:
        """Its length must not depend on `count`."""
        raise NotImplementedError

    def keys(self) -> list[str]:
        return self.rows

    def check(self, key: str) -> None:
        if not key or "\n" in key or "\r" in key:
            raise UserError(f"feature file {self.writer.path}: {key!r} cannot be a key (empty or with a line break)")

    def add(self, key: str, record: np.ndarray) -> None:
        self.file.write(record.data)
        self.name_file.write(f"{key}\n")
        self.rows.append(key)

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(self.header(len(self.rows)))
        for file in (self.file, self.name_file):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def complete(self) -> None:
        """Called after finish() where all records are there, before an older file is removed."""

    def place(self) -> None:
        os.replace(self.data, self.writer.path)


class NpyStore(RowStore):
    def header(self, count: int) -> bytes:
        # As numpy.lib.format writes it, but padded to a length that holds any count.
        shape = (count, *self.writer.shape)
        text = f"{{'descr': '{self.writer.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        length = (10 + len(text) - len(str(count)) + 21 + 63) // 64 * 64
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", length - 10) + text.ljust(length - 11).encode() + b"\n"


class BinStore(RowStore):
    def __init__(self, writer: FeatureWriter, resume: bool):
        if writer.dtype != np.float32:
            raise UserError(f"feature file {writer.path}: PicSOM files hold float32 only, not {writer.dtype}")
        if len(writer.shape) != 1:
            raise UserError(f"feature file {writer.path}: PicSOM files hold vectors only: write maps to .lmdb or .npy")
        super().__init__(writer, resume)

    def header(self, count: int) -> bytes:
        magic = struct.unpack("i", b"PSBD")[0]
        return PICSOM_HEADER.pack(magic, 1.0, PICSOM_HEADER.size, self.bytes, self.writer.shape[0], 1, 0, 0, 0)


class H5Store(RowStore):
    """Rows gather in a plain file, as an HDF5 file that was not closed may be damaged; complete() turns it into one."""

    copied_bytes = 2**25

    def __init__(self, writer: FeatureWriter, resume: bool):
        h5py()  # told before the work where it is missing
        super().__init__(writer, resume)

    def header(self, count: int) -> bytes:
        return b""

    def complete(self) -> None:
        writer, count = self.writer, len(self.rows)
        rows = np.memmap(self.data, writer.dtype, "r", shape=(count, *writer.shape))
        step = max(1, self.copied_bytes // self.bytes)
        with h5py().File(self.data.with_suffix(".h5"), "w") as file:
            data = file.create_dataset("data", rows.shape, writer.dtype)
            for start in range(0, count, step):
                data[start : start + step] = rows[start : start + step]
            if writer.maker is not None:
                file.attrs["extractor"] = json.dumps(writer.maker)
        with open(self.data.with_suffix(".h5"), "rb") as file:
            os.fsync(file.fileno())

    def place(self) -> None:
        os.replace(self.data.with_suffix(".h5"), self.writer.path)


class LmdbStore:
    """A folder with data.mdb, as DeepCaption and lmdb's own default have it. Records go in by batches.

    The environment is open only while a batch is written: an open one must not be carried through the fork of workers.
    """

    beside = False
    batch_bytes = 2**25

    def __init__(self, writer: FeatureWriter, resume: bool):
        self.writer, self.folder = writer, writer.partial / "lmdb"
        self.pending: list[tuple[bytes, bytes]] = []
        self.size = 0
        self.map_size = 2**30
        self.found: list[str] = []
        if resume and (self.folder / "data.mdb").exists():
            with self._environment() as environment, environment.begin() as transaction:
                names = transaction.cursor().iternext(values=False)
                self.found = [name.decode() for name in names if name not in LMDB_OWN_KEYS]

    @contextlib.contextmanager
    def _environment(self):
        import lmdb

        self.folder.mkdir(exist_ok=True)
        data = self.folder / "data.mdb"
        while data.exists() and self.map_size < 2 * data.stat().st_size + 2 * self.batch_bytes:
            self.map_size *= 2
        # No lock file: this process alone knows the folder. No fsync for each batch: finish() does one.
        with naming(self.writer.path, "write", errors=(lmdb.Error,)):
            environment = lmdb.open(str(self.folder), map_size=self.map_size, lock=False, sync=False)
            try:
                yield environment
                environment.sync(True)
            finally:
                environment.close()

    def keys(self) -> list[str]:
        return self.found

    def check(self, key: str) -> None:
        encoded = str(key).encode()
        if not 0 < len(encoded) <= LMDB_LONGEST_KEY or encoded in LMDB_OWN_KEYS:
            reason = f"empty, reserved or longer than {LMDB_LONGEST_KEY} bytes"
            raise UserError(f"feature file {self.writer.path}: {key[:60]!r} cannot be a key of an lmdb file ({reason})")

    def add(self, key: str, record: np.ndarray) -> None:
        little = record.astype(record.dtype.newbyteorder("<"), copy=False)
        self.pending.append((lmdb_key(key), little.tobytes()))
        self.size += little.nbytes
        if self.size >= self.batch_bytes:
            self._flush()

    def _flush(self) -> None:
        with self._environment() as environment, environment.begin(write=True) as transaction:
            for key, value in self.pending:
                transaction.put(key, value)
        self.pending, self.size = [], 0

    def finish(self) -> None:
        writer = self.writer
        if len(writer.shape) > 1:
            self.pending.append((b"@vdim", np.array(writer.shape, "<i4").tobytes()))
        if writer.dtype != np.float32:
            self.pending.append((b"@dtype", writer.dtype.name.encode()))
        if writer.maker is not None:
            self.pending.append((b"@extractor", json.dumps(writer.maker).encode()))
        self._flush()

    def complete(self) -> None:
        pass

    def place(self) -> None:
        os.replace(self.folder, self.writer.path)


STORES = {".lmdb": LmdbStore, ".npy": NpyStore, ".bin": BinStore, ".h5": H5Store}
