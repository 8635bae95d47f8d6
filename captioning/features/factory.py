"""Feature files: one vector, or one map, for every image key.

    reader = open_features("resnet152.lmdb")        # .npy, .lmdb, .bin (PicSOM), .h5, .txt (a list of .bin)
    reader.shape, reader.dtype, reader.provenance   # (2048,), float32, {"extractor": "resnet152", ...} or None
    reader.get_many(keys)                           # (len(keys), 2048), in the file's own dtype

`X-{00..15}.EXT` is one feature file in several, X-00.EXT to X-15.EXT. Where `X.EXT` does not exist and `X-mean.EXT`
does, its one record is given for every key.
"""

from collections.abc import Sequence
from pathlib import Path

from captioning.errors import UserError
from captioning.features.base import FeatureReader
from captioning.features.hdf5_regions import open_h5
from captioning.features.joined import ListReader, open_or_mean
from captioning.features.lmdb_file import LmdbReader
from captioning.features.npy_file import NpyReader
from captioning.features.picsom_file import BinReader
from captioning.features.regions import FolderReader
from captioning.features.sharded import ShardsReader, require_shards, shards

READERS = {".npy": NpyReader, ".lmdb": LmdbReader, ".bin": BinReader, ".h5": open_h5, ".txt": ListReader}


def is_feature_file(name: str) -> bool:
    """Whether a name of `--features` is a feature file, by its extension, or a folder, by its /, and no encoder."""
    return name.endswith("/") or Path(name).suffix.lower() in READERS


def open_features(path, keys: Sequence[str] | None = None, labels: dict[str, int] | None = None) -> FeatureReader:
    """The reader for the format that the extension of `path` tells.

    `keys` are the keys of all images of the dataset in its order: rows of a file that does not name them are taken
    to follow that order. `labels` (label -> record number) names the records of PicSOM files that do not do it
    themselves. Raises UserError for a file that is missing, damaged, cut off, or of an unknown kind.
    """
    path = Path(path)
    if (files := shards(path)) != [path]:
        require_shards(path)
        return ShardsReader(path, [open_features(file, None, labels) for file in files])
    if path.is_dir() and path.suffix.lower() != ".lmdb":
        return FolderReader(path)
    kind = READERS.get(path.suffix.lower())
    if kind is None:
        if not path.exists():
            raise UserError(f"no such feature file or folder: {path}")
        raise UserError(f"feature file {path}: unknown extension {path.suffix!r}; known: {' '.join(READERS)}")
    return open_or_mean(path, kind, keys, *([labels] if kind in (BinReader, ListReader) else []))
