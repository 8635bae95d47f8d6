"""Visual Genome: a paragraph for each image (Krause et al. 2017), or a phrase for each region (Krishna et al. 2017)."""

import contextlib
import os
from collections.abc import Callable, Container, Iterator

from captioning.datasets.base import (
    ID,
    NUMBER,
    TEXT,
    CaptionCleaner,
    CaptionDataset,
    ImageItem,
    check_entry,
    checked_entries,
    is_a,
)
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError, first_few, warn
from captioning.files import read_json
from captioning.text.cleaning import clean_caption, id_text
from captioning.text.paragraphs import spaced_paragraph


class VisualGenomeIM2PDataset(CaptionDataset):
    """A JSON list of `{"image_id": ID, "paragraph": TEXT}`. The image is ID.jpg, which is its key in feature files.

    subset: a JSON list of the ids that belong to the split. An image that is there twice has two captions. Periods
    become words of their own, since tokenisers set only the last one apart.
    Raises UserError naming the file, and the place in it, for anything malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path = self.require_caption_path()
        chosen = None if params.subset is None else self._subset(params.path(params.subset))
        items = described_images(read_json(path, f"--dataset {self.name}"), path, self.image_path, chosen)
        self.items = [item for item in items if chosen is None or id_text(item.image_id) in chosen]
        listed = {id_text(item.image_id) for item in items}
        if chosen is not None and (absent := [name for name in chosen if name not in listed]):
            warn(f"{path}: {len(absent)} images of {params.subset} have no paragraph: {first_few(absent)}")
        if not self.items:
            raise UserError(f"--dataset {self.name}: {path} has no paragraphs" + (" of its subset" if chosen else ""))

    def _subset(self, path: str) -> dict[str, None]:
        """The ids of the split, in order."""
        ids = image_ids(read_json(path, f"--dataset {self.name}: subset"), path)
        return dict.fromkeys(map(id_text, ids))


def described_images(
    data, path, image_path: Callable[[str], str | None] = lambda name: None, chosen: Container[str] | None = None
) -> list[ImageItem]:
    """The images of Visual Genome's paragraphs `data`, in order.

    image_path: gives the file of a name. chosen: the ids, as texts, of images whose paragraphs are wanted (None: all).
    Raises UserError naming the file `path` and the place in it for anything malformed.
    """
    by_id: dict[str, ImageItem] = {}
    cleaner = CaptionCleaner(path, "paragraphs")
    for _, entry in checked_entries(data, path, "", image_id=ID, paragraph=TEXT):
        image_id, key = entry["image_id"], id_text(entry["image_id"])
        name = f"{image_id}.jpg"
        item = by_id.setdefault(key, ImageItem(image_id, name, image_path(name)))
        if chosen is None or key in chosen:
            text = spaced_paragraph(clean_caption(entry["paragraph"]))
            if cleaner.clean(text, image_id):
                item.captions.append(text)
    cleaner.report()
    return list(by_id.values())


def image_ids(ids, path: str, place: str = "") -> list:
    """The ids of a list in a JSON file. Raises UserError naming the place of what is none."""
    if not isinstance(ids, list):
        raise UserError(f"{path}: {place or 'the file'} is not a list of image ids")
    for i, image_id in enumerate(ids):
        if not is_a(image_id, ID):
            raise UserError(f"{path}: {place}[{i}]: {str(image_id)[:40]!r} is neither number nor text")
    return ids


COLUMNS = {"image_id": ID, "region_id": ID, "phrase": TEXT, "x": NUMBER, "y": NUMBER, "width": NUMBER, "height": NUMBER}
SWITCH = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}


class VisualGenomeRegionsDataset(CaptionDataset):
    """Regions `{image_id, region_id, phrase, x, y, width, height}` of images `ID.jpg`, from a .feather or .json file.

    The JSON is a list of regions, or Visual Genome's own list of images, each with its `regions`. An item is a region
    with its phrase, cut from its image; its id is the region_id, its key in feature files `IMAGE_ID:REGION_ID`. With
    `crop = no` an item is an image with the phrases of all its regions, as DeepCaption has it; its key is `ID.jpg`.
    subset = FILE:SPLIT: only the images whose ids FILE, a JSON object of lists, has under SPLIT.
    Raises UserError naming the file and the place of whatever is malformed, and for .feather without pyarrow.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path = self.require_caption_path()
        chosen = None if params.subset is None else self._subset()
        crop = self._crop()
        feather = path.lower().endswith(".feather")
        regions = read_feather(path) if feather else read_regions(path, f"--dataset {self.name}")
        by_id: dict[str, ImageItem] = {}
        cleaner = CaptionCleaner(path, "phrases")
        self._paths: dict[int | str, str | None] = {}  # one text for all regions of an image: there are millions
        for place, region in regions:
            item_id = region["region_id"] if crop else region["image_id"]
            key = id_text(item_id)
            if crop and key in by_id:
                raise UserError(f"{path}: {place}: region_id {item_id!r} is there already")
            if chosen is not None and id_text(region["image_id"]) not in chosen:
                continue
            if key not in by_id:
                by_id[key] = self._item(region, crop)
            if phrase := cleaner.clean(region["phrase"]).strip():
                by_id[key].captions.append(phrase)
        self.items = list(by_id.values())
        cleaner.report()
        if not self.items:
            raise UserError(f"--dataset {self.name}: {path} has no regions" + (" of its subset" if chosen else ""))

    def _item(self, region: dict, crop: bool) -> ImageItem:
        image_id, region_id = region["image_id"], region["region_id"]
        image = self._paths.setdefault(image_id, self.image_path(f"{image_id}.jpg"))
        if not crop:
            return ImageItem(image_id, f"{image_id}.jpg", image)
        box = (region["x"], region["y"], region["width"], region["height"])
        return ImageItem(region_id, f"{image_id}:{region_id}", image, box=box)

    def _crop(self) -> bool:
        value = self.params.extra.get("crop", "yes")
        if value.lower() not in SWITCH:
            raise UserError(f"{self.params.config_path}: [{self.name}] crop = {value}: must be yes or no")
        return SWITCH[value.lower()]

    def _subset(self) -> set:
        """The image ids of `subset = FILE:SPLIT`."""
        name, colon, split = self.params.subset.rpartition(":")
        if not colon:
            raise UserError(f"{self.params.config_path}: [{self.name}] subset = {split}: must be FILE:SPLIT")
        path = self.params.path(name)
        splits = read_json(path, f"--dataset {self.name}: subset")
        if not isinstance(splits, dict):
            raise UserError(f"{path} is not an object of lists of image ids: it should have {split!r} as a key")
        if split not in splits:
            raise UserError(f"{path} has no split {split!r}; it has: {', '.join(map(str, splits)) or 'none'}")
        return set(map(id_text, image_ids(splits[split], path, split)))


def read_regions(path: str, what: str) -> Iterator[tuple[str, dict]]:
    """(place, region) of a JSON file: a list of regions, or of images `{id, regions: [...]}`."""
    data = read_json(path, what)
    if not isinstance(data, list):
        raise UserError(f"{path} is not a list of regions or of images with regions")
    if not data or not isinstance(data[0], dict) or "regions" not in data[0]:
        yield from checked_entries(data, path, "", **COLUMNS)
        return
    own = {name: kind for name, kind in COLUMNS.items() if name != "image_id"}
    for i, image in enumerate(data):
        if not isinstance(image, dict) or "regions" not in image:
            raise UserError(f"{path}: [{i}] has no 'regions', as the images before it have")
        image_id = image.get("id", image.get("image_id"))
        if not is_a(image_id, ID):
            raise UserError(f"{path}: [{i}]: id {str(image_id)[:40]!r} is neither number nor text")
        for place, region in checked_entries(image["regions"], path, f"[{i}].regions", **own):
            yield place, {**region, "image_id": image_id}


def read_feather(path: str) -> Iterator[tuple[str, dict]]:
    """("row 3", region) of a .feather file (Apache Arrow, as pandas' to_feather writes it), rows counted from 0."""
    try:
        import pyarrow
        from pyarrow import feather
    except ImportError:
        advice = "pip install pyarrow, or give the regions as .json"
        raise UserError(f"{path}: .feather files need the package pyarrow: {advice}") from None
    if not os.path.exists(path):
        raise UserError(f"no such file: {path}")
    try:
        table = feather.read_table(path, memory_map=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:150]}") from None
    missing = [name for name in COLUMNS if name not in table.schema.names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; it has: {', '.join(table.schema.names)}")
    columns = []
    for name, kind in COLUMNS.items():
        column = table.column(name)
        if kind is ID and pyarrow.types.is_floating(column.type):  # pandas' way with integers that may be missing
            with contextlib.suppress(pyarrow.ArrowInvalid):
                column = column.cast(pyarrow.int64())
        columns.append(column.to_pylist())
    for i, values in enumerate(zip(*columns)):
        region = dict(zip(COLUMNS, values))
        check_entry(region, path, f"row {i}", **COLUMNS)
        yield f"row {i}", region
