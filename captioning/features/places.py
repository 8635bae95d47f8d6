"""Where the feature files of a dataset lie: in its features_path, or at a path of their own. Nothing is opened here."""

import os
from collections.abc import Iterable
from pathlib import Path

from captioning.errors import UserError
from captioning.features.sharded import shards


def mean_path(path: Path) -> Path:
    """The mean file that stands in for a feature file that does not exist."""
    return path.with_name(f"{path.stem}-mean{path.suffix}")


def is_there(path: Path) -> bool:
    """Whether a feature file, one of those that a range in its name tells, or its mean file, exists."""
    return any(file.exists() for file in shards(path)) or mean_path(path).exists()


def feature_path(part, name: str) -> str:
    """Where the feature file `name` of `part` should lie: without a features_path, in the working directory.

    part: a dataset, or its section of datasets.conf.
    """
    path = os.path.expanduser(name)
    return path if os.path.isabs(path) or not part.features_path else os.path.join(part.features_path, path)


def require_feature_file(part, name: str) -> str:
    """`feature_path`. Raises UserError where neither the file nor its mean file is there."""
    path = feature_path(part, name)
    if not is_there(Path(path)):
        hint = "" if part.features_path else f" (set features_path for [{part.name}], or give the whole path)"
        raise UserError(f"--dataset {part.name}: no such feature file: {path}{hint}")
    return path


def own_place(parts: Iterable, name: str) -> str:
    """`name` where one of `parts` has that feature file, or nobody has; else the whole path of the file it names."""
    known = any(is_there(Path(feature_path(part, name))) for part in parts)
    return name if known or not is_there(Path(name)) else str(Path(name).absolute())
