"""COCO's captions: images and annotations in one JSON file."""

from collections.abc import Callable

from captioning.datasets.base import ID, NAME, TEXT, CaptionDataset, ImageItem, add_captions, checked_entries
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError, warn
from captioning.text.cleaning import id_text


class CocoDataset(CaptionDataset):
    """COCO's JSON: `images[].id/file_name` and `annotations[].image_id/caption`. A file without annotations is fine.

    Raises UserError naming the file, and the place in it, for anything malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path, data = self.read_captions_file("images", "COCO's")
        if params.subset:
            warn(f"[{self.name}] sets subset = {params.subset}, which CocoDataset does not know")
        self.items = captioned_images(data, path, self.image_path)

    @staticmethod
    def old_key(key: str) -> str:
        """DeepCaption's name for a record: it puts COCO_val2014_ before the names of other years."""
        return key if key.startswith("COCO") else f"COCO_val2014_{key}"


def captioned_images(data: dict, path, image_path: Callable[[str], str | None] | None = None) -> list[ImageItem]:
    """The images of COCO's JSON `data` with their captions, in order.

    image_path: gives the file of a file_name; without it images need no names, and where none are listed those of the
    annotations are taken. Raises UserError naming the file `path` and the place in it for anything malformed.
    """
    kinds = {"id": ID} if image_path is None else {"id": ID, "file_name": NAME}
    images = data.get("images", [])
    if image_path is None and not images:
        entries = checked_entries(data.get("annotations", []), path, "annotations", image_id=ID)
        images = [{"id": image_id} for image_id in {id_text(e["image_id"]): e["image_id"] for _, e in entries}.values()]
    by_id: dict[str, ImageItem] = {}
    for place, image in checked_entries(images, path, "images", **kinds):
        key = id_text(image["id"])
        if key in by_id:
            raise UserError(f"{path}: {place}: id {image['id']!r} is there already")
        name = "" if image_path is None else image["file_name"]
        by_id[key] = ImageItem(image["id"], name, image_path and image_path(name))
    entries = checked_entries(data.get("annotations", []), path, "annotations", image_id=ID, caption=TEXT)
    add_captions(path, by_id, ((id_text(entry["image_id"]), entry["caption"]) for _, entry in entries))
    return list(by_id.values())
