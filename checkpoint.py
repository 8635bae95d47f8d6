"""Model files: written atomically, verified when read, and made of tensors and plain types only.

    save({"config": ..., "state": ..., "vocabulary": ...}, "models/run/best.model")
    contents = load("models/run/best.model")

A file is what `torch.save` writes (a zip archive), read with `weights_only=True`: nothing in it can run code. Every
member's CRC is checked before a tensor is believed.
"""

import contextlib
import pickle
import zipfile
from pathlib import Path

import torch

from common import UserError, atomic_write

FORMAT = 1


def save(contents: dict, path) -> None:
    """Write `contents` (tensors, numbers, strings, lists, dicts) with the versions that made it. Raises UserError where the folder cannot be written."""
    with atomic_write(path, "wb") as file:
        torch.save({"format": FORMAT, "versions": versions(), **contents}, file)


def load(path, map_location="cpu") -> dict:
    """The contents of a model file. Raises UserError, naming the file, where it is missing, damaged or no model file."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a model file; perhaps {path / 'best.model'}")
    if not path.exists():
        raise UserError(f"no such model file: {path}")
    verify(path)
    try:
        contents = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model file {path} is damaged or was not written by this toolkit: {reason}") from error
    if not isinstance(contents, dict) or "format" not in contents:
        raise UserError(f"{path} is not a model file of this toolkit")
    if contents["format"] > FORMAT:
        raise UserError(f"model file {path} has format {contents['format']}, newer than this toolkit's {FORMAT}")
    return contents


def verify(path) -> None:
    """Raise UserError unless `path` is a zip archive whose members all match their CRC."""
    broken = "no zip archive"
    with contextlib.suppress(zipfile.BadZipFile, EOFError, NotImplementedError, OSError):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return
    raise UserError(f"model file {path} is damaged ({broken}): copy or train it again")


def versions() -> dict[str, str]:
    """Versions of the libraries that matter for repeating a result."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
