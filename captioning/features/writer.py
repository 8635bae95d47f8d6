"""`FeatureWriter`: writes a feature file of any format, with restart after an interruption."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from captioning.errors import UserError
from captioning.features.factory import open_features
from captioning.features.handles import naming
from captioning.features.hdf5_file import H5Store
from captioning.features.lmdb_file import LmdbStore
from captioning.features.npy_file import NpyStore
from captioning.features.partial import PartialFolder, is_unfinished
from captioning.features.picsom_file import BinStore
from captioning.features.sharded import shards
from captioning.files import is_plain, read_json

DTYPES = ("float32", "float16")


class FeatureWriter:
    """Writes a feature file of the format that the extension of `path` tells: .lmdb, .npy, .bin (PicSOM) or .h5.

    shape: of one record, in an lmdb also (0, D) of regions (R, D) whose number R differs.
    dtype: "float32" or "float16" (not in .bin); provenance: what made the features (`extractor`,
    `weights_sha256`, `transform`, `feature_type`), stored with them; keys: those that are to come, for `todo`.
    The records gather in `X.EXT.partial/`; close() puts the file in place. After an interruption the folder stays, and
    with `resume` the records in it are kept; `todo` has the keys that are not among them. Without it they are in the
    way: captioning.features.partial.discard_partial() removes them.
    As a context manager it closes on success and leaves the partial folder on an exception.
    Raises UserError for a shape or type the format does not know, a key written twice, values that do not fit, where
    another process writes the same file, and where an interrupted run left records and `resume` is not given.
    """

    def __init__(
        self,
        path,
        shape: tuple[int, ...],
        dtype: str = "float32",
        provenance: dict | None = None,
        keys: Iterable[str] | None = None,
        resume: bool = False,
    ):
        self.path = Path(path)
        store = STORES.get(self.path.suffix.lower())
        if store is None:
            raise UserError(f"feature file {path}: cannot write {self.path.suffix!r}; known: {' '.join(STORES)}")
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        if self.dtype.name not in DTYPES:
            raise UserError(f"feature file {path}: dtype {self.dtype} is none of {', '.join(DTYPES)}")
        varying = store is LmdbStore and len(self.shape) == 2 and self.shape[0] == 0 < self.shape[1]
        if not varying and (not self.shape or min(self.shape) < 1):
            raise UserError(f"feature file {path}: {self.shape} is no shape of a record")
        if not is_plain(path) or (self.path.is_dir() and store is not LmdbStore):
            raise UserError(f"feature file {path} is not a plain file: name another one")
        if shards(path) != [self.path]:  # a reader would look for the files of the range
            raise UserError(f"feature file {path}: one file is written: give a name without {{FIRST..LAST}}")
        self.provenance, self.keys = provenance, None if keys is None else list(keys)
        if store.beside:
            self._check_siblings()
        self.store = None  # where the file is complete
        with naming(self.path, "write"):
            self.folder = PartialFolder(self.path)
            self.partial = self.folder.path
            try:
                self.done = self._begin(store, resume)
            except BaseException:
                self.folder.leave()
                raise

    def _check_siblings(self) -> None:
        """Files of one name and several formats share X.json: refuse to change what it says of another one."""
        noted = self.path.with_suffix(".json")
        for suffix, store in STORES.items():
            other = self.path.with_suffix(suffix)
            shares = store.beside and other != self.path and other.exists() and noted.exists()
            if shares and read_json(noted, "feature file") != json.loads(json.dumps(self.provenance)):
                raise UserError(f"{other} holds other features and would share {noted}: use another name")

    def _begin(self, store, resume: bool) -> set[str]:
        """Open the store in the partial folder; gives the keys that are there already."""
        placed = resume and self.folder.place()
        if placed:
            self.folder.remove()
        if resume and not is_unfinished(self.path) and (keys := self._standing()):
            self.folder.leave()
            return keys
        if placed:
            raise UserError(f"feature file {self.path} is complete, but not what is asked for: --force makes it anew")
        settings = {"shape": list(self.shape), "dtype": self.dtype.name, "maker": self.provenance}
        self.store = store(self, self.folder.begin(settings, resume))
        return set(self.store.rows)

    def _standing(self) -> set[str]:
        """The keys, if the file stands already with all of their records, made in the same way; else nothing."""
        if not self.keys or not self.path.exists():
            return set()
        file = open_features(self.path)
        made = json.loads(json.dumps(self.provenance))
        same = (file.shape, file.dtype, file.provenance) == (self.shape, self.dtype, made)
        return set() if not same or file.missing(self.keys) else set(self.keys)

    def __len__(self) -> int:
        return len(self.done)

    @property
    def todo(self) -> list[str]:
        """Those of `keys` not yet written, in their order, each once."""
        return [key for key in dict.fromkeys(self.keys or ()) if key not in self.done]

    def write(self, key: str, array) -> None:
        """Add the record of `key`: an array of `shape`, cast to `dtype`."""
        if key in self.done or self.store is None:
            raise UserError(f"feature file {self.path}: {key!r} is written twice; keys must differ")
        self.store.check(key)
        with np.errstate(over="ignore"):
            record = np.ascontiguousarray(array, self.dtype)
        wanted = (len(record), self.shape[1]) if self.shape[0] == 0 and record.size else self.shape
        if record.shape != wanted:
            raise UserError(f"feature file {self.path}: {key!r} has shape {record.shape}, not {self.shape}")
        if not np.isfinite(record).all():
            raise UserError(f"feature file {self.path}: {key!r} has values that {self.dtype} cannot hold, or NaN")
        with naming(self.path, "write"):
            self.store.add(key, record)
        self.done.add(key)

    def close(self) -> None:
        """Put the file in place, with what belongs beside it, over an older one. Raises UserError if it is empty."""
        if self.store is None:
            return
        try:
            if not self.done:
                raise UserError(f"feature file {self.path}: no records were written")
            with naming(self.path, "write"):
                self.folder.complete(self.store.finish(), self.provenance)
                self.folder.place()
                self.folder.remove()
        finally:
            self.leave()

    def leave(self) -> None:
        """Let others write the file. The records so far stay in the partial folder, for `resume`."""
        if self.store is not None:
            self.store.stop()
            self.store = None
            self.folder.leave()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close() if kind is None else self.leave()


STORES = {".lmdb": LmdbStore, ".npy": NpyStore, ".bin": BinStore, ".h5": H5Store}
