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


def is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**53


def is_position(value) -> bool:
    """Whether `value` says where training stands, for --resume: epoch, batch, sums so far, the trainer's state."""
    if not isinstance(value, dict) or not is_trainer_state(value.get("trainer")):
        return False
    if not is_count(value.get("epoch")) or not is_count(value.get("batch")):
        return False
    settings = value.get("settings", {})  # older versions wrote none, or None
    return (value["batch"] == 0 or are_sums(value.get("progress"))) and (settings is None or are_settings(settings))


def is_trainer_state(value) -> bool:
    """Whether `value` counts the trainer's steps. The trainer itself looks at the optimizer's state."""
    if not isinstance(value, dict) or not is_count(value.get("step")) or not is_count(value.get("num_epochs")):
        return False
    steps = value.get("steps_per_epoch", 1)
    counts = is_count(steps) and steps > 0 and all(is_count(value.get(name, 0)) for name in ("began", "turned"))
    plateau, factor = value.get("plateau"), value.get("plateau_factor")
    follows = plateau is None or (is_plain_table(plateau, list) and type(factor) in (int, float))
    return counts and follows and type(value.get("self_critical", False)) is bool


def are_sums(value) -> bool:
    """Whether `value` has the sums of an epoch so far, as the trainer adds them up."""
    numbers = ("loss_sum", "reward_sum", "tokens", "captions")
    if not isinstance(value, dict) or not all(type(value.get(name)) in (int, float) for name in numbers):
        return False
    others = value.get("others", {})
    return is_table_of(list | tuple, others) and all(
        len(pair) == 2 and is_list_of(int | float, pair) for pair in others.values()
    )


def are_settings(value) -> bool:
    """Whether `value` has the settings of a run by flag."""
    numbers = "--num_epochs", "--self_critical_from_epoch"
    lists = [one for one in value.values() if isinstance(one, list)] if isinstance(value, dict) else []
    plain = is_plain_table(value, list) and all(is_list_of(str, one) for one in lists)
    return plain and all(type(value.get(name, 0)) is int for name in numbers)


def is_weighed(value) -> bool:
    """Whether `value` is the path of a model and its weight in a mean."""
    return len(value) == 2 and isinstance(value[0], str) and type(value[1]) in (int, float)


def is_plain_table(value, *more: type) -> bool:
    """Whether `value` is a dict of names and plain values, or of what `more` names."""
    return isinstance(value, dict) and all(type(x) in (*PLAIN, *more) for pair in value.items() for x in pair)


ENTRIES = {  # what a model file may hold -> whether a value is of the right type
    "kind": lambda value: isinstance(value, str),
    "made_by": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, dict),
    "vocabulary": lambda value: isinstance(value, dict),
    "state": lambda value: is_table_of(torch.Tensor, value),
    "epoch": is_count,
    "versions": lambda value: is_table_of(str, value),
    "command": lambda value: value is None or is_list_of(str, value),
    "history": lambda value: is_list_of(str, value),
    "stats": lambda value: is_table_of(int | float | NoneType, value),
    "parts": lambda value: isinstance(value, list) and all(are_settings(one) for one in value),
    "averaged": lambda value: is_list_of(list | tuple, value) and all(map(is_weighed, value)),
    "calibration": is_plain_table,
    "beam_size": lambda value: type(value) is int and 1 <= value <= 10_000,
    "no_repeat_words": lambda value: type(value) is bool,
    "length_penalty": lambda value: type(value) in (int, float) and -1e6 < value < 1e6,
    "training": is_position,
    "counters": is_trainer_state,
    "settings": lambda value: value is None or are_settings(value),
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
