"""Images in zip and tar files, by paths that lead into them; which of the two it is matters nowhere else."""

import os

from captioning.images.tar_file import read_place, split_place
from captioning.images.zip_file import open_zip, split_path


def archive_of(path) -> str | None:
    """The zip or tar file in which the image `path` lies; None for a file of its own."""
    found = split_path(path) or split_place(path)
    return found[0] if found else None


def read_member(path) -> bytes:
    """The content of an image in a zip or tar file. Raises OSError, ValueError, zlib.error or UserError."""
    if inside := split_path(path):
        return open_zip(inside[0]).read(inside[1])
    return read_place(*split_place(path))


def member_exists(path) -> bool:
    """Whether the zip file has the image, or the tar file is there. Raises UserError for a damaged zip file."""
    if inside := split_path(path):
        return open_zip(inside[0]).find(inside[1]) is not None
    return os.path.isfile(split_place(path)[0])
