"""What is in tar shards: their samples, found once and kept in a file beside each shard.

    read_shards(["shards-0000.tar", "shards-0001.tar"])[0].samples[0]
    # Sample(image_id='000000', key='000000.jpg', name='000000.jpg', offset=1536, size=20480, captions=['A dog runs.'])

A sample is what webdataset takes for one: members that follow each other and whose names are the same up to the first
dot. The index of `shards-0000.tar` is `shards-0000.tar.index`, JSON, which may be deleted at any time. It is made anew
where it is missing or damaged, and where the shard has another size or time than when the index was made.
"""

import json
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from captioning.cores import own_cores
from captioning.datasets.base import ID, is_a
from captioning.errors import UserError, is_installed, note_once
from captioning.files import atomic_write, parse_json, remove_leftovers
from captioning.images.kinds import EXTENSIONS
from captioning.images.zip_file import leads_out
from captioning.processes import in_processes
from captioning.progress import Bar
from captioning.text.cleaning import can_be_a_name

FORM = 2  # of the index: another number is made anew
BLOCK = tarfile.BLOCKSIZE
TEXTS = ("txt", "json")
LONGEST_TEXT = 2**20  # bytes of a .txt or .json
CAPTION_KEYS = ("captions", "caption", "text")  # of a .json, the first that is there and not null counts
PACKAGE = "webdataset"


class Sample(NamedTuple):
    """A picture of a shard with its captions: its id in results, its key in feature files, the member `name` with its
    place in the shard, and the captions as they stand there."""

    image_id: int | str
    key: str
    name: str
    offset: int
    size: int
    captions: list[str]


@dataclass
class Shard:
    """The samples of a tar file. damaged: a line for all that cannot be read; bare: keys of samples without picture."""

    path: str
    samples: list[Sample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)


def read_shards(paths: Sequence[str]) -> list[Shard]:
    """The shards of these files, in order. Those without an index are read by several processes.

    Raises UserError for a file that cannot be read, or is no tar file, and where the package webdataset is missing.
    """
    found = {path: kept_index(path) for path in dict.fromkeys(paths)}
    lacking = [path for path, shard in found.items() if shard is None]
    if lacking:
        for folder in {os.path.dirname(path) for path in lacking}:
            remove_leftovers(folder or os.curdir)  # of indexes that were not finished
        samples_of([])  # imports webdataset once, before the processes begin
        with (
            in_processes(index_shard, lacking, own_cores()) as shards,
            Bar(len(lacking), "index", "shard", stream=sys.stderr) as bar,
        ):
            errors = []
            for shard, error in bar.over(shards):
                found[shard.path] = shard
                errors += [error] if error else []
        if errors:
            what = f"{len(errors)} shards are read at every start, since their indexes cannot be kept"
            note_once(f"{what}: {errors[0]}")
    return [found[path] for path in paths]


def index_path(path: str) -> str:
    """The file that keeps the index of a shard."""
    return f"{path}.index"


def index_shard(path: str) -> tuple[Shard, str]:
    """Read a shard and keep its index beside it. Gives the shard, and why the index is not kept, "" where it is."""
    stamp = stamp_of(path)
    shard = read_shard(path)
    content = {"form": FORM, **stamp, "samples": shard.samples, "damaged": shard.damaged, "bare": shard.bare}
    try:
        with atomic_write(index_path(path), flush=False) as file:
            json.dump(content, file)
    except UserError as error:
        return shard, str(error)
    return shard, ""


def kept_index(path: str) -> Shard | None:
    """The shard as its index has it; None where there is no index that fits the shard. Raises UserError."""
    stamp = stamp_of(path)
    try:
        with open(index_path(path), encoding="utf-8") as file:
            content = json.load(file)
        if {name: content[name] for name in ("form", *stamp)} != {"form": FORM, **stamp}:
            return None
        samples = [Sample(*row) for row in content["samples"]]
        sound = all(map(is_sound, samples)) and all(map(is_texts, (content["damaged"], content["bare"])))
        return Shard(path, samples, content["damaged"], content["bare"]) if sound else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def stamp_of(path: str) -> dict[str, int]:
    """What changes when a shard does. Raises UserError where it is not there."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def is_sound(sample: Sample) -> bool:
    """Whether the values of a sample are of the kinds that they must be."""
    names = is_a(sample.image_id, ID) and isinstance(sample.key, str) and isinstance(sample.name, str)
    place = type(sample.offset) is type(sample.size) is int
    return names and place and is_texts(sample.captions) and not leads_out(sample.name)


def is_texts(value) -> bool:
    """Whether `value` is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# ---- reading a shard ----


class Member(NamedTuple):
    """A file in a tar file: where its content is, and the content itself where it is a text."""

    name: str
    offset: int
    size: int
    content: bytes | None


def read_shard(path: str) -> Shard:
    """The samples of the tar file `path`. Raises UserError where it is none, or cannot be read."""
    shard = Shard(path)
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar, open(path, "rb") as file:
            samples = list(samples_of(members_of(tar, file, shard.damaged), shard.damaged))
    except tarfile.ReadError as error:
        advice = "shards are tar files that are not compressed (gunzip unpacks .tar.gz)"
        raise UserError(f"{path} is no tar file: {error}: {advice}") from error
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
    for members in samples:
        add_sample(shard, members)
    if not samples and not shard.damaged:
        shard.damaged.append("there is nothing in it")
    return shard


def members_of(tar: tarfile.TarFile, file, damaged: list[str]) -> Iterator[Member]:
    """The plain files of a tar file. What is damaged is named in `damaged` and passed over.

    After a damaged header the next sound one is looked for (`ignore_zeros` of tarfile). What lies between two members
    and is not zero therefore tells of damage.
    """
    size = os.fstat(file.fileno()).st_size
    end = 0  # of the member before
    try:
        for info in tar:
            tar.members = []  # or it would keep them all
            if info.size < 0 or info.offset < end:  # older versions of Python would read the same members for ever
                damaged.append(f"damaged at byte {info.offset:,}: what follows is lost")
                return
            if info.offset > end and is_damage(file, end, info.offset):
                damaged.append(f"damaged from byte {end:,} to byte {info.offset:,}: what was there is lost")
            end = info.offset_data + -(-info.size // BLOCK) * BLOCK
            if info.islnk() or info.issym() or info.issparse():
                damaged.append(f"{info.name} is left out: it is a {'sparse file' if info.issparse() else 'link'}")
            if not info.isreg() or info.issparse():
                continue
            if leads_out(info.name) or not is_name(info.name):
                damaged.append(f"{info.name!r} is left out: it is no name within a folder, or has a line break")
            elif info.offset_data + info.size <= size:
                yield Member(info.name, info.offset_data, info.size, text_of(file, info))
            else:
                damaged.append(f"it is cut off in {info.name}")
                return
        broken = end + BLOCK > size or is_damage(file, end, size)
    except tarfile.ReadError:
        if end == 0:
            raise
        broken = True
    except (ValueError, OverflowError, MemoryError):  # of tarfile, by a header whose numbers make no sense
        broken = True
    if broken:
        damaged.append(f"it is cut off, or damaged, at byte {end:,}")


def is_name(text: str) -> bool:
    """Whether a text can be an image's id or its key in feature files, whose names stand on a line each."""
    return text != "" and can_be_a_name(text) and not {"\n", "\r"} & set(text)


def is_damage(file, begin: int, end: int) -> bool:
    """Whether the bytes between two members are other than zero. A header that is for all members is none."""
    file.seek(begin)
    while begin < end:
        block = file.read(min(BLOCK, end - begin))
        if any(block):
            try:
                return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").type != tarfile.XGLTYPE
            except tarfile.HeaderError:
                return True
        if not block:  # the file ends here
            break
        begin += len(block)
    return False


def text_of(file, info: tarfile.TarInfo) -> bytes | None:
    """The content of a member that is a text, at most LONGEST_TEXT bytes and one more; None of others."""
    if not info.name.lower().endswith(tuple(f".{ending}" for ending in TEXTS)):
        return None
    file.seek(info.offset_data)
    return file.read(min(info.size, LONGEST_TEXT + 1))


def samples_of(members: Iterable[Member], damaged: list[str] | None = None) -> Iterator[dict[str, Member | str]]:
    """The members of each sample by their endings, its key as "__key__", as webdataset's own rule has it.

    damaged: gets a line for a name that is there twice. Raises UserError where the package is missing.
    """
    require_package()
    from webdataset.tariterators import group_by_keys  # it imports torch

    def tell(error: Exception) -> bool:
        damaged.append(str(error.args[0]).partition(" in tar file")[0])
        return True

    files = ({"fname": member.name, "data": member, "__url__": ""} for member in members)
    return group_by_keys(files, handler=tell)


def require_package() -> None:
    """Raises UserError where the package webdataset is not installed."""
    if not is_installed(PACKAGE):
        raise UserError(f"dataset_class WebDataset needs a package: pip install {PACKAGE}")


def add_sample(shard: Shard, members: dict[str, Member | str]) -> None:
    """Add the picture with its captions to the shard; what cannot be used goes to `damaged` or `bare`."""
    picture = next((one for ending, one in members.items() if f".{ending}" in EXTENSIONS), None)
    key = members["__key__"].removeprefix("./")
    if picture is None:
        shard.bare.append(key)
        return
    name = picture.name.removeprefix("./")
    found = Sample(key, name, name, picture.offset, picture.size, [])
    for ending in TEXTS:  # the captions of a .json go before those of a .txt
        if ending in members:
            try:
                found = read_text(found, ending, members[ending].content)
            except ValueError as error:
                shard.damaged.append(f"{members[ending].name} is left out: {error}")
    shard.samples.append(found)


def read_text(sample: Sample, ending: str, content: bytes) -> Sample:
    """The sample with what its .txt or .json tells. Raises ValueError where that is malformed."""
    if len(content) > LONGEST_TEXT:
        raise ValueError(f"more than {LONGEST_TEXT:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None
    if ending == "txt":
        lines = text.replace("\r", "\n").split("\n")  # splitlines() would also cut at marks within a caption
        return sample._replace(captions=[line for line in lines if line.strip()])
    value = parse_json(text)
    table = value if isinstance(value, dict) else {"captions": value}
    captions = next((table[name] for name in CAPTION_KEYS if table.get(name) is not None), [])
    captions = [captions] if isinstance(captions, str) else captions
    if not is_texts(captions):
        raise ValueError("its captions are neither a text nor a list of texts")
    image_id, key = table.get("image_id", sample.image_id), table.get("key", sample.key)
    if not all(is_a(value, ID) and is_name(str(value)) for value in (image_id, key)):
        raise ValueError("its image_id or key is neither a text of one line nor a whole number")
    return sample._replace(image_id=image_id, key=str(key), captions=captions or sample.captions)
