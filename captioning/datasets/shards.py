"""Tar shards, as the package webdataset writes and reads them: pictures with their captions in a few large files."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from captioning.datasets.base import CaptionCleaner, CaptionDataset
from captioning.datasets.config import DatasetParams
from captioning.datasets.items import ImageItem, Items
from captioning.datasets.shard_index import Shard, read_shards, require_package
from captioning.errors import UserError, first_few, warn
from captioning.images.tar_file import member_path
from captioning.text.cleaning import id_text

MOST_SHARDS = 100_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)")
MOST_WARNINGS = 10  # lines about what is damaged


class WebDataset(CaptionDataset):
    """The samples of the tar shards that `urls` names: `shards-{0000..0099}.tar`, several patterns joined by `::`.

    A sample is KEY.jpg, or a picture with another ending, and KEY.txt, a caption a line, or KEY.json with "captions",
    and perhaps "image_id" and "key". `image_id` is that of the .json, else KEY; `key` that of the .json, else the name
    of the picture. Where shards share an id or a key, the later ones begin with the name of their shard. Pictures are
    read from the shards in place. Raises UserError where a shard is missing or no tar file, and for addresses.
    """

    in_shards = True

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        require_package()
        if params.subset:
            warn(f"[{self.name}] sets subset = {params.subset}, which WebDataset does not know")
        self.caption_path = urls = params.extra.get("urls") or ""
        shards = read_shards(self.shard_paths(urls))
        self.damaged = [f"{shard.path}: {line}" for shard in shards for line in shard.damaged]
        self.tell(shards)
        self.items = self.read_items(shards, urls)
        if not self.items:
            raise UserError(f"--dataset {self.name}: there are no pictures in {urls}")

    def shard_paths(self, urls: str) -> list[str]:
        """The files that `urls` names. Raises UserError where one is not there."""
        from braceexpand import UnbalancedBracesError, braceexpand  # webdataset requires it

        place = self.params.config_path  # None where --dataset names the shards themselves
        where = f"{place}: [{self.name}] urls = {urls}" if place else f"{self.params.option} {urls}"
        if not urls:
            raise UserError(f"--dataset {self.name}: set urls in {self.params.config_path}: shards-{{0000..0099}}.tar")
        if "://" in urls or urls.startswith("pipe:"):
            raise UserError(f"{where}: only files can be read: copy the shards to a disk")
        try:
            names = [name for pattern in urls.split("::") for name in expanded(braceexpand, pattern.strip(), where)]
        except UnbalancedBracesError as error:
            raise UserError(f"{where}: {error}") from error
        if wrong := [name for name in names if not name.lower().endswith(".tar")]:
            raise UserError(f"{where}: {wrong[0]} does not end in .tar; shards are not compressed")
        paths = [self.params.path(name) for name in names]
        if absent := [path for path in paths if not os.path.isfile(path)]:
            raise UserError(f"{where}: {len(absent)} of {len(paths)} shards are missing: {first_few(absent)}")
        return paths

    def tell(self, shards: list[Shard]) -> None:
        """Warn of what is damaged or left out."""
        for line in self.damaged[:MOST_WARNINGS]:
            warn(line)
        if (more := len(self.damaged) - MOST_WARNINGS) > 0:
            warn(f"--dataset {self.name}: {more} more places in shards are damaged or left out")
        if bare := [f"{shard.path}/{key}" for shard in shards for key in shard.bare]:
            advice = "a name counts up to its first dot"
            warn(f"--dataset {self.name}: {len(bare)} samples without a picture left out ({advice}): {first_few(bare)}")

    def read_items(self, shards: list[Shard], source: str) -> Items:
        """The samples as items, each with an id and a key of its own."""
        cleaner, ids, keys, items = CaptionCleaner(source), Counter(), Counter(), Items()
        for shard in shards:
            stem = os.path.splitext(os.path.basename(shard.path))[0]
            for sample in shard.samples:
                image_id, key = distinct(sample.image_id, ids, stem), distinct(sample.key, keys, stem)
                texts = [cleaner.clean(text.strip(), image_id) for text in sample.captions]
                path = member_path(shard.path, sample.offset, sample.size, sample.name)
                items.append(ImageItem(image_id, key, path, [text for text in texts if text]))
        cleaner.report()
        if shared := [image_id for image_id, count in ids.items() if count > 1]:
            few = first_few(shared)
            warn(f"--dataset {self.name}: ids of several samples, the later ones get the shard's name in front: {few}")
        return items


def distinct(value: int | str, seen: Counter, stem: str) -> int | str:
    """`value`, or where it was seen before `stem`/value, with a number behind it if that was seen too."""
    seen[id_text(value)] += 1
    if seen[id_text(value)] == 1:
        return value
    name = f"{stem}/{value}"
    seen[id_text(name)] += 1
    return name if seen[id_text(name)] == 1 else f"{name}/{seen[id_text(name)]}"


def expanded(expand: Callable[[str], Iterable[str]], pattern: str, where: str) -> list[str]:
    """The names that a pattern stands for. Raises UserError where they are too many."""
    # the package would put all numbers of a range into memory
    ranges = (abs(int(last) - int(first)) for first, last in RANGE.findall(pattern))
    found = [] if any(width > MOST_SHARDS for width in ranges) else list(islice(expand(pattern), MOST_SHARDS + 1))
    if not 0 < len(found) <= MOST_SHARDS:
        raise UserError(f"{where}: more than {MOST_SHARDS:,} shards")
    return found
