"""Model files: written atomically, verified when read, and made of tensors and plain types only.

A file is a zip archive of `torch.save`. `tensor_files.py` reads it, so that nothing in it can run code. The CRC of
every member is checked before any tensor is used.
"""

import contextlib
import platform
import shlex
from collections import OrderedDict
from importlib import metadata
from types import NoneType

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
    check_contents(contents, path)
    return contents


def check_contents(contents: dict, path) -> None:
    """Raises UserError, naming the file, where an entry that scripts read is of another type than they write."""
    for name, sound in ENTRIES.items():
        if name in contents and not sound(contents[name]):
            raise UserError(f"model file {path} is damaged or not ours: its {name} is not what train.py writes")


def is_list_of(kind: type, value) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)


def is_table_of(kind: type, value) -> bool:
    return isinstance(value, dict) and is_list_of(str, list(value)) and is_list_of(kind, list(value.values()))


def is_position(value) -> bool:
    """Whether `value` says where training stands, for --resume."""
    if not isinstance(value, dict) or not isinstance(value.get("trainer"), dict):
        return False
    return all(type(value.get(name)) is int and 0 <= value[name] < 2**53 for name in ("epoch", "batch"))


ENTRIES = {  # what a model file may hold -> whether a value is of the right type
    "kind": lambda value: isinstance(value, str),
    "made_by": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, dict),
    "vocabulary": lambda value: isinstance(value, dict),
    "state": lambda value: is_table_of(torch.Tensor, value),
    "epoch": lambda value: type(value) is int and 0 <= value < 2**53,
    "versions": lambda value: is_table_of(str, value),
    "command": lambda value: value is None or is_list_of(str, value),
    "history": lambda value: is_list_of(str, value),
    "stats": lambda value: is_table_of(int | float | NoneType, value),
    "averaged": lambda value: is_list_of(list | tuple, value),
    "length_penalty": lambda value: type(value) in (int, float) and -1e6 < value < 1e6,
    "training": is_position,
    "converted_from": lambda value: is_table_of(str, value) and {"file", "sha256"} <= set(value),
}


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
