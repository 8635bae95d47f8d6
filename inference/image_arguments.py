"""The images that a person names on the command line: files, folders, zip files and patterns.

    passed = PassedOver()
    named_images(["a.png", "holiday", "photos.zip", "more/**/*.jpg"], recursive=True, passed=passed)
    # ["a.png", "holiday/b.jpg", "photos.zip/c.jpg", "more/2024/d.jpg"]

An image is named as the shell would name it: by the folder as it was typed, then its name in the folder.
"""

import glob
import os
from collections.abc import Sequence

from captioning.errors import UserError, first_few
from captioning.images.image_file import image_exists
from captioning.images.kinds import is_readable_name
from captioning.images.listing import PassedOver, list_images
from captioning.images.zip_file import is_zip, split_path


def named_images(arguments: Sequence[str], recursive: bool, passed: PassedOver) -> list[str]:
    """The images of all `arguments`, each once, in their order; those of a folder or pattern are sorted.

    A file is taken whatever it is called. recursive: with the images of subfolders. passed: counts what folders and
    patterns hold besides images. Raises UserError for what is not there and where there is no image.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        for path in _images_of(argument, recursive, passed):
            found.setdefault(os.path.abspath(path), path)
    if arguments and not found:
        line = passed.line()
        raise UserError(f"no images in {first_few(arguments)}" + (f" ({line})" if line else ""))
    return list(found.values())


def holds_images(argument: str) -> bool:
    """Whether an argument is a folder, a zip file or a pattern."""
    return os.path.isdir(argument) or is_zip(argument) or _is_pattern(argument)


def _is_pattern(argument: str) -> bool:
    """Whether `argument` has `*`, `?` or `[...]` and is not the name of a file."""
    return glob.has_magic(argument) and not os.path.lexists(argument) and not image_exists(argument)


def _images_of(argument: str, recursive: bool, passed: PassedOver) -> list[str]:
    if _is_pattern(argument):
        return _matches(argument, recursive, passed)
    if os.path.isdir(argument) or is_zip(argument):
        return _listed(argument, recursive, passed)
    if not image_exists(argument):
        raise UserError(f"no such image: {argument}")
    return [argument]


def _listed(folder: str, recursive: bool, passed: PassedOver) -> list[str]:
    return [str(path) for path in list_images(folder, recursive, passed)]


def _matches(pattern: str, recursive: bool, passed: PassedOver) -> list[str]:
    """The images that a pattern matches; `**` stands for any folders. Zip files are opened, as where they are named."""
    if inside := split_path(pattern):
        raise UserError(f"{pattern}: patterns do not reach into zip files: give {inside[0]}, or one of its images")
    names = sorted(glob.glob(pattern, recursive=True))
    if not names:
        raise UserError(f"no file matches the pattern {pattern}")
    found = []
    for name in names:
        if os.path.isdir(name):
            if recursive:
                found += _listed(name, recursive, passed)
            elif "**" not in pattern:  # which matches the files in it by themselves
                passed.folders += 1
        elif is_zip(name):
            found += _listed(name, recursive, passed)
        elif is_readable_name(os.path.basename(name)):
            found.append(name)
        else:
            passed.add(os.path.basename(name))
    return found
