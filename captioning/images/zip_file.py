"""Images in a zip file, read in place: `photos.zip/sub/a.jpg` is the member `sub/a.jpg` of photos.zip.

A zip whose images all lie in one top folder, as `zip -r photos.zip photos/` makes it, may be read without naming that
folder. The index of a zip is read once per process, and forked workers share it; the file itself is opened for every
member anew, so that processes and threads never share a position in it.
"""

import errno
import functools
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from operator import attrgetter

from captioning.errors import UserError, first_few, warn_once

LARGEST = 2**28  # bytes of a member unpacked: more is no image, or a decompression bomb
LOCAL_HEADER = struct.Struct("<4s22x2H")  # magic, the lengths of name and extra field, after which the data begins
MEMBER = attrgetter("header_offset", "compress_size", "file_size", "compress_type", "CRC", "flag_bits")
JUNK = re.compile(r"(?s)__MACOSX/|(.*/)?\.")  # what a Mac adds, and hidden files


class ImageZip:
    """The index of the zip file `path`: `members`, name -> its entry; `top`, the folder that holds them all or "".

    hidden: how many hidden files were left out.

    Raises UserError where the file cannot be read or is no zip.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if info.filename and not info.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
            raise UserError(f"cannot read zip file {path}: {error}") from None
        except OSError as error:
            raise UserError(f"cannot read zip file {path}: {error.strerror or error}") from None
        within = [info for info in infos if not leads_out(info.filename)]
        entries = [info for info in within if not JUNK.match(info.filename)]
        self.hidden = len(within) - len(entries)
        # plain tuples: zipfile's own entries take some times the memory, and a large set has a hundred thousand
        self.members = {info.filename: MEMBER(info) for info in entries}
        if lost := [info.filename for info in infos if leads_out(info.filename)]:
            warn_once(f"{path}: {len(lost)} members left out, whose names lead out of the zip file: {first_few(lost)}")
        if len(self.members) < len(entries):
            twice = [name for name, times in Counter(info.filename for info in entries).items() if times > 1]
            warn_once(f"{path}: {len(twice)} names stand there more than once, the last counts: {first_few(twice)}")
        tops = {name.partition("/")[0] if "/" in name else "" for name in self.members}
        self.top = tops.pop() + "/" if len(tops) == 1 and "" not in tops else ""

    def find(self, name: str) -> str | None:
        """The full name of member `name`, which may leave out the top folder; None where there is none."""
        return next((full for full in (name, self.top + name) if full in self.members), None)

    def names(self) -> list[str]:
        """Members in the zip's order, without the top folder."""
        return [name.removeprefix(self.top) for name in self.members]

    def read(self, name: str) -> bytes:
        """The content of a member. Raises FileNotFoundError, and ValueError where it is damaged or encrypted."""
        full = self.find(name)
        if full is None:
            raise FileNotFoundError(errno.ENOENT, f"there is no {name} in {self.path}")
        offset, packed, size, method, checksum, flags = self.members[full]
        if flags & 1:
            raise ValueError("it is encrypted in the zip file")
        if max(size, packed) > LARGEST:
            raise ValueError(f"{max(size, packed):,} bytes are more than {LARGEST:,}")
        with open(self.path, "rb") as file:
            file.seek(offset)
            head = file.read(LOCAL_HEADER.size)
            if len(head) < LOCAL_HEADER.size or head[:4] != b"PK\x03\x04":
                raise ValueError("the zip file is damaged there")
            _, name_length, extra_length = LOCAL_HEADER.unpack(head)
            file.seek(name_length + extra_length, os.SEEK_CUR)
            data = file.read(packed)
        data = _unpacked(data, method, size + 1)
        if len(data) != size or zlib.crc32(data) != checksum:
            raise ValueError("its content in the zip file is damaged")
        return data


def leads_out(name: str) -> bool:
    """Whether a member's name, put behind a folder, would name a file that is not in the folder."""
    return name.startswith("/") or ".." in name.split("/")


def _unpacked(data: bytes, method: int, most: int) -> bytes:
    """At most `most` bytes of a packed member. Raises ValueError for damaged data and unknown methods."""
    try:
        if method == zipfile.ZIP_STORED:
            return data
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most)
        if method == zipfile.ZIP_BZIP2:
            import bz2  # some builds of Python lack it

            return bz2.BZ2Decompressor().decompress(data, most)
        if method == zipfile.ZIP_LZMA:
            import lzma

            # in the file: a version, the length of the properties (5 bytes), the properties, the data
            alone = data[4:9] + b"\xff" * 8 + data[9:]  # as .lzma files have it, of unknown length
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LARGEST).decompress(alone, most)
    except Exception as error:  # bz2, lzma and zlib have errors of their own
        raise ValueError("its content in the zip file is damaged") from error
    raise ValueError(f"compression method {method} of zip files is not supported")


def open_zip(path) -> ImageZip:
    """The index of a zip file, read anew only where the file has changed. Raises UserError."""
    path = os.fspath(path)
    try:
        now = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read zip file {path}: {error.strerror or error}") from None
    return _index(path, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _index(path: str, size: int, mtime_ns: int) -> ImageZip:
    return ImageZip(path)


def is_zip(path) -> bool:
    """Whether `path` is a file that ends in .zip."""
    return os.fspath(path).lower().endswith(".zip") and os.path.isfile(path)


def split_path(path) -> tuple[str, str] | None:
    """("photos.zip", "sub/a.jpg") where a part of `path` is a zip file; None for any other path."""
    path = os.fspath(path)
    lower = path.lower()
    end = lower.find(".zip" + os.sep)
    while end >= 0:
        if os.path.isfile(path[: end + 4]):  # not a folder that is called so
            return path[: end + 4], path[end + 5 :].replace(os.sep, "/")
        end = lower.find(".zip" + os.sep, end + 5)
    return None
