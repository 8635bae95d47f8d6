"""What infer.py writes for each image beside the results: text files, and image files that hold their captions.

output = Sidecars("txt", existing="append")     # or Copies("captioned")
output.plan(dataset.items)                      # finds what cannot be written, before anything is captioned
output.write(item, result)
output.report()                                 # "captions in text files beside the images (.txt): 80"
"""

import contextlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Sequence

from captioning.datasets.base import ImageItem, image_key
from captioning.datasets.items import Items, packed
from captioning.errors import LINE_ENDS, UserError, warn
from captioning.files import atomic_write, check_writable, remove_leftovers
from captioning.images.archives import archive_of, read_member
from captioning.images.description import require_package, with_description
from captioning.images.kinds import EXTENSIONS
from captioning.images.tar_file import plain_path
from inference.results.result import Result


class _Output:
    """A file for each image. Subclasses say where it is and what is in it.

    option: the flag that asks for it; existing: what becomes of files that are there: "skip", "overwrite" or "append".
    counts: how many files were "written" and how many images "failed", of which each was named.
    """

    option = ""
    makes_folders = False  # or the folders of the files are those of the images
    flush = False  # whether to wait for the disk at each file

    def __init__(self, existing: str):
        self.existing = existing
        self.counts: Counter = Counter()
        self.paths: dict[tuple, str] = {}  # image_key(item) -> its file

    def plan(self, items: Sequence[ImageItem]) -> None:
        """Settle which file each image has. Raises UserError where one cannot be written, or is that of two images."""
        for item in items:
            if item.path is None:
                raise UserError(f"{self.option}: where the images lie is not known: set image_dir of the dataset")
        self.paths = self._places(items)
        owners: dict[str, ImageItem] = {}
        for item in items:
            path = self.paths[image_key(item)]
            if path in owners:
                both = f"{owners[path].path} and {item.path}" if item.path != owners[path].path else item.path
                raise UserError(
                    f"{self.option}: {both}: more than one image would have the file {path}: leave one of them out"
                )
            owners[path] = item
            if os.path.isdir(path):
                raise UserError(f"{self.option}: {path} is a folder, so no file can have its name")
        for folder, path in {os.path.dirname(path) or os.curdir: path for path in owners}.items():
            if self.makes_folders or os.path.isdir(folder):
                check_writable(self.option, path)
                remove_leftovers(folder)

    def is_done(self, item: ImageItem) -> bool:
        """Whether the file of an image is there, with something in it, and shall stay."""
        if self.existing != "skip":
            return False
        try:
            return os.path.getsize(self.paths[image_key(item)]) > 0
        except OSError:
            return False

    def write(self, item: ImageItem, result: Result) -> None:
        """Write the file of an image, unless it is done or the model was not sure of any caption.

        Raises UserError where the disk cannot be written.
        """
        if result.unsure or self.is_done(item):
            return
        path = self.paths[image_key(item)]
        data = self._content(item, result, path)
        if data is None:
            self.counts["failed"] += 1
            return
        with atomic_write(path, "wb", self.flush) as file:
            file.write(data)
        self.counts["written"] += 1

    def _places(self, items: Sequence[ImageItem]) -> dict[tuple, str]:
        """image_key(item) -> the file of each image."""
        raise NotImplementedError

    def _content(self, item: ImageItem, result: Result, path: str) -> bytes | None:
        """What goes into the file at `path`; None where an image cannot have one, which is said."""
        raise NotImplementedError


class Sidecars(_Output):
    """`x.txt` beside `x.jpg`: a caption a line, each between `prefix` and `suffix`. ending: "txt", without the dot.

    "append" adds lines to those of a file that is there. Raises UserError for an ending that no text file should have.
    """

    option = "--sidecar"

    def __init__(self, ending: str, existing: str = "skip", prefix: str = "", suffix: str = ""):
        super().__init__(existing)
        self.ending = ending.removeprefix(".")
        self.prefix, self.suffix = prefix, suffix
        dotted = f".{self.ending.lower()}"
        if not self.ending.isalnum() or dotted in EXTENSIONS or dotted == ".zip":
            raise UserError(f"--sidecar {ending}: give the ending of text files, such as txt or caption")

    def _places(self, items: Sequence[ImageItem]) -> dict[tuple, str]:
        for item in items:
            if archive := archive_of(item.path):
                raise UserError(f"--sidecar: nothing is written into zip or tar files: unpack {archive} first")
        return {image_key(item): f"{os.path.splitext(item.path)[0]}.{self.ending}" for item in items}

    def _content(self, item: ImageItem, result: Result, path: str) -> bytes:
        lines = [f"{self.prefix}{text}{self.suffix}".translate(LINE_ENDS) for text, _ in result.captions]
        new = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        if self.existing != "append" or not os.path.exists(path):
            return new
        with open(path, "rb") as file:
            old = file.read()
        return (old if not old or old.endswith(b"\n") else old + b"\n") + new

    def report(self) -> str:
        """What is said of it at the end."""
        return f"captions in text files beside the images (.{self.ending}): {self.counts['written']}"


class Copies(_Output):
    """Copies of the images in a folder, or with `folder` None the images themselves, with the best caption in each.

    The copy of an image has its place below the folder that all images have in common.
    """

    makes_folders = True

    def __init__(self, folder: str | None, existing: str = "skip"):
        super().__init__(existing if folder else "overwrite")
        self.folder, self.flush = folder, folder is None
        self.option = "--write_metadata" if folder else "--write_metadata_in_place"
        require_package(self.option)

    def _places(self, items: Sequence[ImageItem]) -> dict[tuple, str]:
        if not self.folder:
            for item in items:
                if archive := archive_of(item.path):
                    raise UserError(f"{self.option}: nothing is written into zip or tar files: unpack {archive} first")
            return {image_key(item): item.path for item in items}
        return self._places_of_copies(items)

    def _places_of_copies(self, items: Sequence[ImageItem]) -> dict[tuple, str]:
        paths = {image_key(item): plain_path(item.path) for item in items}
        folders = {path: os.path.abspath(path) for path in set(map(os.path.dirname, paths.values()))}
        try:
            common = os.path.commonpath(folders.values())
        except ValueError:  # on Windows
            raise UserError(
                f"{self.option}: the images lie on several drives: caption them one after the other"
            ) from None
        if os.path.realpath(common) == os.path.realpath(self.folder):
            remedy = "name another folder, or give --write_metadata_in_place"
            raise UserError(f"{self.option} {self.folder}: the images themselves are there: {remedy}")
        places = {}
        for key, path in paths.items():
            folder, name = os.path.split(path)
            below = os.path.relpath(folders[folder], common)
            places[key] = os.path.normpath(os.path.join(self.folder, below, name))
        return places

    def _content(self, item: ImageItem, result: Result, path: str) -> bytes | None:
        try:
            return with_description(_bytes_of(item.path), result.captions[0][0])
        except (ValueError, OSError) as error:
            warn(f"{item.path}: its caption is not written into it: {error}")
            return None

    def write(self, item: ImageItem, result: Result) -> None:
        """`_Output.write`; a copy has the time and the permissions of its image, which itself keeps its permissions."""
        path, before = self.paths[image_key(item)], self.counts["written"]
        mode = stat.S_IMODE(os.stat(item.path).st_mode) if not self.folder and os.path.exists(item.path) else 0
        super().write(item, result)
        if self.counts["written"] == before or archive_of(item.path):
            return
        with contextlib.suppress(OSError):  # a file system without permissions
            shutil.copystat(item.path, path) if self.folder else os.chmod(path, mode)

    def report(self) -> str:
        """What is said of it at the end."""
        what = f"captions in copies of the images, in {self.folder}" if self.folder else "captions in the images"
        return f"{what}: {self.counts['written']}"


def outside(items: Iterable[ImageItem], folder: str) -> Items:
    """The items whose files do not lie in `folder`, where copies of an earlier run may be; all, where none is left."""
    items, top = packed(items), os.path.realpath(folder)
    folders = {os.path.dirname(item.path) for item in items if item.path}
    within = {path for path in folders if f"{os.path.realpath(path)}{os.sep}".startswith(f"{top}{os.sep}")}
    return items.where(lambda item: not item.path or os.path.dirname(item.path) not in within) or items


def _bytes_of(path: str) -> bytes:
    """The content of an image file or of a member of a zip or tar file. Raises OSError or ValueError."""
    if archive_of(path):
        return read_member(path)
    with open(path, "rb") as file:
        return file.read()
