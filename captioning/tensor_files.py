"""Files of `torch.save`, of today and of before 2020: checked whole, then read by torch with `weights_only=True`.

    contents = read_tensors(path, STAND_INS)

torch believes what a file says of the size of its tensors, and copies whatever it names. Here a file is followed first
without making a tensor: each must lie within the bytes that are there.
"""

import math
import mmap
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from captioning.errors import one_line
from captioning.files import require_plain_file
from captioning.pickles import PickleError, check_pickle, read_pickle

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's files before 1.6, which are no zip archives
LARGEST_PICKLE = 2**26  # bytes: names, numbers and words, without the tensors
SHARED = 8  # how many bytes of tensors a byte of the file may stand for: layers may share their weights
STORAGES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
STORAGES |= {"Bool": 1, "Untyped": 1}


class TensorFileError(ValueError):
    """A file that is damaged or holds what it should not. The message does not name the file."""


class _Storage:
    """Stands in for a storage of torch: how many numbers it has, and the bytes of each."""

    def __init__(self, count: int, width: int):
        self.count, self.width = count, width


class _Contents:
    """Takes the place of torch while a file's pickle is followed: adds up the bytes of its tensors.

    sizes: bytes of each storage by its name, where the file has a list of them; total: bytes of the whole file.
    """

    def __init__(self, known: Mapping[str, object], sizes: Mapping[str, int] | None, total: int):
        self.sizes, self.total = sizes, total
        self.storages: dict[str, int] = {}
        self.bytes = self.tensors = 0  # of the storages, and of the tensors made of them
        rebuild = {"_rebuild_tensor": self.tensor, "_rebuild_tensor_v2": self.tensor}
        rebuild["_rebuild_parameter"] = lambda tensor, *rest: tensor
        self.known = {f"torch._utils.{name}": function for name, function in rebuild.items()}
        self.known |= {f"torch.{name}Storage": width for name, width in STORAGES.items()}
        self.known |= {"torch.storage.UntypedStorage": 1, "collections.OrderedDict": OrderedDict, **known}

    def storage(self, reference) -> _Storage:
        """For what the pickle refers to: ("storage", type, name, device, count, ...)."""
        kind, width, name, _, count = reference[:5]
        if kind != "storage" or type(width) is not int or type(name) is not str or type(count) is not int or count < 0:
            raise PickleError("it refers to something other than its tensors")
        if self.sizes is not None and self.sizes.get(name) != count * width:
            raise PickleError(f"tensor data {name[:20]!r} does not have the size that it is said to have")
        self.bytes += max(0, count * width - self.storages.get(name, 0))
        self.storages[name] = max(count * width, self.storages.get(name, 0))
        if self.bytes > self.total:
            raise PickleError("its tensors are larger than the file")
        return _Storage(count, width)

    def tensor(self, storage: _Storage, offset: int, shape: tuple, stride: tuple, *rest) -> None:
        numbers = [offset, *shape, *stride]
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(shape) != len(stride) or len(shape) > 16:
            raise PickleError("a tensor has no proper shape")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride)) if count else 0
        if count > storage.count or last >= max(storage.count, 1):
            raise PickleError(f"a tensor of shape {shape} is larger than its data")
        self.tensors += count * storage.width
        if self.tensors > SHARED * self.total:
            raise PickleError("its tensors are many times as large as the file")


def read_tensors(path, known: Mapping[str, object] | None = None, map_location="cpu"):
    """What `torch.save` wrote into `path`: tensors, plain values and what `known` has by full name.

    Raises TensorFileError where the file is damaged or holds anything else, UserError where it is no plain file.
    """
    known = known or {}
    require_plain_file(path, "model file")
    try:
        if is_legacy(path):
            _check_legacy(path, known)
        else:
            _check_archive(path, known)
        with torch.serialization.safe_globals([(value, name) for name, value in known.items()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except TensorFileError:
        raise
    except PickleError as error:
        reason = str(error)
        if reason.startswith("it asks for"):
            reason += ", which no model needs"
        raise TensorFileError(reason) from error
    except pickle.UnpicklingError as error:  # torch's text tells how to run the code in it
        raise TensorFileError("it holds more than tensors and plain values") from error
    except PermissionError as error:
        raise TensorFileError(error.strerror) from error
    except Exception as error:  # damaged files raise errors of many kinds
        raise TensorFileError(one_line(error)) from error


def is_legacy(path) -> bool:
    """Whether the plain file `path` begins as torch wrote files before 2020: without checksums."""
    with open(path, "rb") as file:
        return file.read(len(LEGACY_START)) == LEGACY_START


def pickle_of(path) -> bytes:
    """The pickle with the names and plain values of an archive. Raises TensorFileError where that is damaged."""
    with _archive(path) as archive:
        try:
            return archive.read(_pickle_member(archive))
        except (zipfile.BadZipFile, EOFError) as error:
            raise TensorFileError(one_line(error)) from error


def _check_archive(path, known: Mapping[str, object]) -> None:
    """Raises TensorFileError or PickleError unless the zip archive `path` is as torch writes it, and undamaged."""
    with _archive(path) as archive:
        broken = archive.testzip()
        if broken is not None:
            raise TensorFileError(one_line(broken))
        member = _pickle_member(archive)
        begin = member.filename.removesuffix("data.pkl") + "data/"
        sizes = {name.removeprefix(begin): info.file_size for name, info in archive.NameToInfo.items()}
        contents = _Contents(known, sizes, os.path.getsize(path))
        read_pickle(archive.read(member), contents.known, references=contents.storage)


def _archive(path) -> zipfile.ZipFile:
    """The zip archive `path`. Raises TensorFileError where its directory is damaged or not as torch writes it.

    torch reads nothing from a member that calls itself a folder, and leaves its tensor uninitialised. A packed member
    could be small in the file and large in memory. torch does not tell capital letters from small ones in names.
    """
    try:
        archive = zipfile.ZipFile(path)
    except PermissionError:
        raise
    except Exception as error:  # a damaged directory of members raises errors of many kinds
        raise TensorFileError("no zip archive") from error
    members = archive.infolist()
    broken = next((one_line(info.filename) for info in members if not is_as_torch_writes(info)), None)
    names = {info.filename.lower() for info in members}
    if broken is None and len(names) < len(members):
        broken = "two members of one name"
    if broken is None and sum(info.file_size for info in members) > os.path.getsize(path):
        broken = "members larger than the file"
    if broken is not None:
        archive.close()
        raise TensorFileError(broken)
    return archive


def _pickle_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The member with the names and plain values, which lies in the one folder of the archive."""
    found = [info for info in archive.infolist() if Path(info.filename).name == "data.pkl"]
    if len(found) != 1 or found[0].file_size > LARGEST_PICKLE:
        raise TensorFileError("no archive of torch.save")
    return found[0]


def is_as_torch_writes(info: zipfile.ZipInfo) -> bool:
    """Whether a member of an archive is plain: stored as it is, no folder, without attributes."""
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    return stored and info.filename != "" and info.external_attr == 0 and not info.is_dir() and not info.flag_bits & 1


def _check_legacy(path, known: Mapping[str, object]) -> None:
    """Raises PickleError unless the pickles of a file of before 2020 are plain, and its tensors fit into the file."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = len(LEGACY_START)
        for _ in range(2):  # the protocol, and facts of the machine that wrote it
            end = check_pickle(data, place)
            read_pickle(data[place:end], {})
            place = end
        end = check_pickle(data, place, references=True)
        contents = _Contents(known, None, len(data) - end)
        read_pickle(data[place:end], contents.known, references=contents.storage)
        names = read_pickle(data[end : check_pickle(data, end)], {})
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PickleError("its list of tensors is damaged")
