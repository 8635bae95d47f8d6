"""Pictures in tar files, read in place: `shards-0003.tar/1536+20480/000123.jpg` is 20,480 bytes from byte 1,536 on.

A tar file has no list of its members. Where a picture lies is therefore part of its path, and a process that reads one
needs nothing else. `member_path` makes such paths; a person is shown `plain_path`, `shards-0003.tar/000123.jpg`.
"""

import functools
import os
import re

LARGEST = 2**28  # bytes of a picture: more is none
PLACE = re.compile(r"(?s)(.+?\.tar)[/\\](\d+)\+(\d+)[/\\](.+)", re.I)
AHEAD = 2**20  # bytes that the system is asked for at a time
MOST_AHEAD = 2**30  # bytes of a file that it is asked for


def member_path(tar: str, offset: int, size: int, name: str) -> str:
    """The path of the member `name` of a tar file, whose content is `size` bytes from byte `offset` on."""
    return f"{tar}/{offset}+{size}/{name}"


def split_place(path) -> tuple[str, int, int] | None:
    """(tar file, offset, size) of a path that `member_path` made; None for any other path."""
    path = os.fspath(path)
    found = PLACE.fullmatch(path) if ".tar" in path.lower() else None
    return (found[1], int(found[2]), int(found[3])) if found else None


def plain_path(path) -> str:
    """What a person is shown of the path of an image: without the place in the tar file."""
    return PLACE.sub(r"\1/\4", str(path)) if ".tar" in str(path).lower() else str(path)


def read_place(tar: str, offset: int, size: int) -> bytes:
    """`size` bytes of a tar file from byte `offset` on. Raises OSError, and ValueError where they are not there."""
    if size > LARGEST:
        raise ValueError(f"{size:,} bytes are more than {LARGEST:,}")
    read_ahead(os.path.abspath(tar))
    with open(tar, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise ValueError("the tar file is cut off there")
    return content


@functools.lru_cache(maxsize=64)
def read_ahead(path: str) -> None:
    """Have the system read a whole tar file into its memory, in the order of the disk, while pictures of it are used.

    The pictures of a shard are read in any order, but soon after each other. A process asks once per file, unless it
    has asked for many others since.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with open(path, "rb") as file:
        # piece by piece, since the system shortens a long request
        for begin in range(0, min(os.fstat(file.fileno()).st_size, MOST_AHEAD), AHEAD):
            os.posix_fadvise(file.fileno(), begin, AHEAD, os.POSIX_FADV_WILLNEED)
