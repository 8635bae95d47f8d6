"""Model files: written atomically, verified when read, and made of tensors and plain types only.

A file is a zip archive of `torch.save`. `tensor_files.py` reads it, so that nothing in it can run code. The CRC of
every member is checked before any tensor is used.
"""

import contextlib
import platform
import shlex
from collections import OrderedDict
from importlib import metadata

import torch

from captioning.errors import UserError
from captioning.files import atomic_write, require_model_file
from captioning.tensor_files import TensorFileError, read_tensors

FORMAT = 1
PLAIN = (str, int, float, bool, bytes, type(None))


def save(contents: dict, path) -> None:
    """Write `contents` (tensors, numbers, strings, lists, dicts) with the versions that made it.

    Raises UserError where the folder cannot be written, TypeError for what `load` would refuse.
    """
    check_plain(contents, "contents")
    with atomic_write(path, "wb") as file:
        torch.save({"format": FORMAT, "versions": versions(), **contents}, file)


def load(path, map_location="cpu") -> dict:
    """The contents of a model file. Raises UserError, naming the file, where it is missing, damaged or none of ours."""
    require_model_file(path)
    try:
        contents = read_tensors(path, map_location=map_location)
    except TensorFileError as error:
        raise UserError(f"model file {path} is damaged ({error}): copy or train it again") from error
    if not isinstance(contents, dict) or type(contents.get("format")) is not int:
        raise UserError(f"{path} is not a model file of this toolkit")
    if contents["format"] > FORMAT:
        raise UserError(f"model file {path} has format {contents['format']}, newer than this toolkit's {FORMAT}")
    return contents


def versions() -> dict[str, str]:
    """Versions of the libraries that matter for repeating a result."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def check_plain(value, place: str) -> None:
    """Raise TypeError, naming the place, unless `value` is made of tensors and plain types: numpy's are not."""
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            check_plain(key, f"a key of {place}")
            check_plain(part, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, part in enumerate(value):
            check_plain(part, f"{place}[{index}]")
    elif type(value) not in PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(f"{place} is a {type(value).__name__}, which a model file cannot hold")


def command_history(info: dict) -> list[str]:
    """The command lines that a loaded model came from, oldest first."""
    return [*info.get("history", []), *(shlex.join(command) for command in [info.get("command")] if command)]


def first_names(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """For each name of `state` the first name that its tensor has: layers with shared weights name one tensor twice."""
    known: dict[tuple, list[str]] = {}
    found = {}
    for name, value in state.items():
        alike = known.setdefault((value.shape, value.dtype), [])
        found[name] = next((other for other in alike if value.is_set_to(state[other])), name)
        if found[name] == name and value.numel():
            alike.append(name)
    return found
