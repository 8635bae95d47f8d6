"""`FeatureWriter`: writes a feature file of any format, with restart after an interruption."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from captioning.errors import UserError
from captioning.features.handles import forget, naming
from captioning.features.hdf5_file import H5Store
from captioning.features.lmdb_file import LmdbStore
from captioning.features.npy_file import NpyStore
from captioning.features.picsom_file import BinStore
from captioning.files import atomic_write, read_json

DTYPES = ("float32", "float16")


class FeatureWriter:
    """Writes a feature file of the format that the extension of `path` tells: .lmdb, .npy, .bin (PicSOM) or .h5.

    shape: of one record; dtype: "float32" or "float16" (not in .bin); provenance: what made the features (`extractor`,
    `weights_sha256`, `transform`, `feature_type`), stored with them; keys: those that are to come, for `todo`.
    The records gather in `X.EXT.partial/`; close() puts the file in place. After an interruption the folder stays, and
    with `resume` the records in it are kept; `todo` has the keys that are not among them.
    As a context manager it closes on success and leaves the partial folder on an exception.
    Raises UserError for a shape or type the format does not know, a key written twice, values that do not fit.
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
        self.path = Path(path).expanduser()
        store = STORES.get(self.path.suffix.lower())
        if store is None:
            raise UserError(f"feature file {path}: cannot write {self.path.suffix!r}; known: {' '.join(STORES)}")
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        if self.dtype.name not in DTYPES:
            raise UserError(f"feature file {path}: dtype {self.dtype} is none of {', '.join(DTYPES)}")
        if not self.shape or min(self.shape) < 1:
            raise UserError(f"feature file {path}: {self.shape} is no shape of a record")
        self.provenance, self.keys = provenance, None if keys is None else list(keys)
        if store.beside:
            self._check_siblings()
        self.partial = self.path.with_name(self.path.name + ".partial")
        with naming(self.path, "write"):
            resume = self._prepare(resume)
            self.store = store(self, resume)
        self.done = set(self.store.rows)

    def _check_siblings(self) -> None:
        """Files of one name and several formats share X.json: refuse to change what it says of another one."""
        noted = self.path.with_suffix(".json")
        for suffix, store in STORES.items():
            other = self.path.with_suffix(suffix)
            shares = store.beside and other != self.path and other.exists() and noted.exists()
            if shares and read_json(noted, "feature file") != json.loads(json.dumps(self.provenance)):
                raise UserError(f"{other} holds other features and would share {noted}: use another name")

    def _prepare(self, resume: bool) -> bool:
        """Make the partial folder, or keep the one that is there if it was begun with the same settings."""
        settings = {"shape": list(self.shape), "dtype": self.dtype.name, "maker": self.provenance}
        noted = self.partial / "settings.json"
        if resume and noted.exists():
            if read_json(noted, "resume") != json.loads(json.dumps(settings)):
                advice = f"remove it, or go on with those in {noted}"
                raise UserError(f"{self.partial} was begun with other settings: {advice}")
            return True
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        with atomic_write(noted) as file:
            json.dump(settings, file, indent=1)
        return False

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
                if self.provenance is not None:
                    with atomic_write(beside[1]) as file:
                        json.dump(self.provenance, file, indent=1)
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


STORES = {".lmdb": LmdbStore, ".npy": NpyStore, ".bin": BinStore, ".h5": H5Store}
