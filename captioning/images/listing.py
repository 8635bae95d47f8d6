"""Listing the images of folders and zip files, and counting what is passed over.

    passed = PassedOver()
    list_images("holiday", passed=passed)         # [Path("holiday/a.jpg"), ...]
    passed.line()                                 # "passed over: 3 .txt, 1 .mov, 2 folders (--recursive)"

A zip file stands for a folder: `photos.zip/sub/a.jpg` is an image in it.
"""

import os
import re
from collections import Counter
from pathlib import Path

from captioning.errors import UserError, note_once
from captioning.images.kinds import HEIF_EXTENSIONS, HEIF_PACKAGE, is_readable_name
from captioning.images.zip_file import is_zip, open_zip

MOST_KINDS = 8  # that are named, the others are counted together
ENDING = re.compile(r"\.\w{1,10}")


class PassedOver:
    """Counts the files of folders that are not taken for images, by the endings of their names, and the folders."""

    def __init__(self):
        self.kinds: Counter = Counter()
        self.hidden = self.folders = 0

    def add(self, name: str) -> None:
        """Count the file `name`."""
        ending = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            self.hidden += 1
        elif ending in HEIF_EXTENSIONS:
            self.kinds[f"{ending} (pip install {HEIF_PACKAGE})"] += 1
        else:
            self.kinds[ending if ENDING.fullmatch(ending) else "without an ending"] += 1

    def line(self) -> str:
        """What is said of them; empty where nothing was passed over."""
        kinds = sorted(self.kinds.items(), key=lambda pair: (-pair[1], pair[0]))
        parts = [f"{count} {kind}" for kind, count in kinds[:MOST_KINDS]]
        if others := sum(count for _, count in kinds[MOST_KINDS:]):
            parts.append(f"{others} of other kinds")
        parts += [f"{self.hidden} hidden"] if self.hidden else []
        parts += [f"{self.folders} folder{'s' * (self.folders > 1)} (--recursive)"] if self.folders else []
        return f"passed over: {', '.join(parts)}" if parts else ""


def list_images(folder, recursive: bool = False, passed: PassedOver | None = None) -> list[Path]:
    """The image files of `folder` by their extension (any letter case), sorted; hidden files are skipped.

    With `recursive` also those of its subfolders, links to folders included. `folder` may be a zip file. passed: counts
    what is left out; without it one line tells of images that need a package. Raises UserError for a missing folder.
    """
    folder, counted = Path(folder), passed or PassedOver()
    found = (_in_zip if is_zip(folder) else _in_folder)(folder, recursive, counted)
    if passed is None and any(kind.startswith(HEIF_EXTENSIONS) for kind in counted.kinds):
        lost = {kind: count for kind, count in counted.kinds.items() if kind.startswith(HEIF_EXTENSIONS)}
        note_once(f"{folder}: passed over: {', '.join(f'{count} {kind}' for kind, count in lost.items())}")
    return sorted(found)


def _in_zip(path: Path, recursive: bool, passed: PassedOver) -> list[Path]:
    archive = open_zip(path)
    passed.hidden += archive.hidden
    found, folders = [], set()
    for name in archive.names():
        top, below, _ = name.partition("/")
        if below and not recursive:
            folders.add(top)
        elif is_readable_name(base := os.path.basename(name)):
            found.append(path / name)
        else:
            passed.add(base)
    passed.folders += len(folders)
    return found


def _in_folder(folder: Path, recursive: bool, passed: PassedOver) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder" if folder.exists() else f"no such image folder: {folder}")
    found, seen = [], set()

    def stop(error: OSError):
        raise UserError(f"cannot list folder {error.filename}: {error.strerror}") from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        seen.add(os.path.realpath(place))
        for name in files:
            if is_readable_name(name):
                found.append(Path(place, name))
            else:
                passed.add(name)
        open_ones = [name for name in sorted(folders) if not name.startswith(".")]
        passed.hidden += len(folders) - len(open_ones)
        if not recursive:
            passed.folders += len(open_ones)
            break
        # A link may lead back up: each real folder is walked once.
        folders[:] = [name for name in open_ones if os.path.realpath(os.path.join(place, name)) not in seen]
    return found
