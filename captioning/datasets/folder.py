"""Images without captions: a list of files, a folder, or a zip file of photos."""

import os
from collections.abc import Iterable

from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError
from captioning.files import read_lines
from captioning.images.listing import PassedOver, list_images


class GenericDataset(CaptionDataset):
    """Images without captions: the files given, then those of the folder given or of the section's `image_dir`.

    `image_id` is the path as given, or the name within the folder (where a file given has this name, the path); `key`
    is the file name. With `subset`, a text file with a name a line, only these images of the folder. passed: counts
    what the folder holds besides images. Files that do not exist are kept, for the loader to name them.
    """

    def __init__(
        self,
        params: DatasetParams | None = None,
        *,
        files: Iterable = (),
        image_dir=None,
        recursive: bool = False,
        passed: PassedOver | None = None,
    ):
        super().__init__(params or DatasetParams("generic", "GenericDataset"))
        self.image_dir = str(image_dir) if image_dir else self.image_dir
        self.items = [ImageItem(str(path), os.path.basename(path), str(path)) for path in map(str, files)]
        if self.params.subset:
            self._add_listed(self.params.path(self.params.subset))
        elif self.image_dir:
            paths = list_images(self.image_dir, recursive, passed)
            if not paths and not self.items:
                raise UserError(f"no images in {self.image_dir}" + ("" if recursive else " (subfolders are left out)"))
            names = [path.relative_to(self.image_dir).as_posix() for path in paths]
            taken = {item.image_id for item in self.items}
            ids = [str(path) if name in taken else name for name, path in zip(names, paths)]
            self.items += [ImageItem(image_id, path.name, str(path)) for image_id, path in zip(ids, paths)]
        if not self.items:
            raise UserError(f"--dataset {self.name}: no images: give files or a folder")

    @staticmethod
    def old_key(key: str) -> str:
        """DeepCaption's name for a record: that of the file without its extension."""
        return os.path.splitext(key)[0]

    def _add_listed(self, path: str) -> None:
        """The images that the lines of a text file name; blank lines and those that begin with # are passed over."""
        if not self.image_dir:
            where = self.params.config_path
            raise UserError(f"--dataset {self.name}: set image_dir in {where}: subset lists its images")
        seen: dict[str, int] = {}
        for number, line in enumerate(read_lines(path, f"--dataset {self.name}", "surrogateescape"), 1):
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            if "\0" in name or os.path.isabs(name):
                raise UserError(f"{path}, line {number}: {name[:60]!r} is not the name of an image within image_dir")
            if name in seen:
                raise UserError(f"{path}, line {number}: {name!r} is on line {seen[name]} already")
            seen[name] = number
            self.items.append(ImageItem(name, os.path.basename(name), self.image_path(name)))
